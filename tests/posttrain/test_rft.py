"""Rejection sampling keeps what is right, distinct and short, and says what it left out."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.posttrain.config import GRPOConfig, RFTConfig
from loopline.posttrain.rft import accept
from loopline.posttrain.stage import grpo, rft
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, changed_weights, check_training_stage

SMALL = RFTConfig(
    from_step=0.4, minimum=3, solved_share=0.9, steps=6, batch_size=8, sequence_length=224, rows_per_batch=4,
    general={"code": 0.5, "safety": 0.2, "lookup": 0.3}, runtime=OFTEN,
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(world, tmp_path_factory):
    """A checkpoint of the RL stage with its rollouts."""
    context = make_context(tmp_path_factory.mktemp("policy"), stage="grpo")
    config = GRPOConfig(steps=5, prompts_per_step=8, group_size=4, temperature=1.3, max_new_tokens=10)
    grpo(config, world, context)
    return make_artifact(context.out, stage="grpo")


def output(text="4", score=1.0, finish="stop", tokens=None):
    return {"text": text, "score": score, "finish": finish, "tokens": tokens or len(text) + 1, "flags": []}


def row(step, task, *outputs):
    return {"step": step, "task": task, "task_set": "arithmetic", "prompt": f"{task}?", "outputs": list(outputs)}


def accepted(rows, **changes):
    config = RFTConfig.model_validate({"from_step": 0, "solved_share": 1, **changes})
    kept, rejected = accept(rows, config, np.random.default_rng(0))
    return [(item["task"], item["messages"][-1]["content"]) for item in kept], rejected


def test_only_finished_correct_answers_are_kept_the_shortest_of_each_prompt():
    rows = [
        row(0, "a", output("<think>2+2=4</think>4"), output("4"), output("5", 0.0), output("4", 1.0, "length")),
        row(0, "b", output("44", 0.5), output("x", None)),
    ]
    kept, rejected = accepted(rows)
    assert kept == [("a", "4")]
    assert rejected == {
        "too early": 0, "wrong": 3, "could not be graded": 1, "repeated": 0, "longer": 1, "too easy": 0,
    }  # fmt: skip


def test_a_prompt_that_comes_up_again_competes_with_itself():
    rows = [row(0, "a", output("four")), row(3, "a", output("4"), output("four")), row(3, "b", output("four"))]
    assert accepted(rows)[0] == [("a", "4"), ("b", "four")]
    assert accepted(rows, per_prompt=2)[0] == [("a", "4"), ("a", "four"), ("b", "four")]
    assert accepted(rows, per_prompt=2)[1]["repeated"] == 1


def test_early_rollouts_are_left_out():
    rows = [row(step, f"t{step}", output()) for step in range(10)]
    kept, rejected = accepted(rows, from_step=0.7)
    assert [task for task, _ in kept] == ["t7", "t8", "t9"]
    assert rejected["too early"] == 7


def test_prompts_that_every_sample_solved_get_a_bounded_share():
    easy = [row(0, f"e{n}", output("4"), output("4")) for n in range(20)]
    hard = [row(0, f"h{n}", output("4"), output("5", 0.0)) for n in range(6)]
    kept, rejected = accepted([*easy, *hard], solved_share=0.25)
    assert Counter(task[0] for task, _ in kept) == {"h": 6, "e": 2}
    assert rejected["too easy"] == 18
    assert len(accepted([*easy, *hard], solved_share=1)[0]) == 26
    assert len(accepted([*easy, *hard], solved_share=0)[0]) == 6


outputs_strategy = st.builds(
    output,
    text=st.sampled_from(["4", "four", "<think>2+2=4</think>4", "5"]),
    score=st.sampled_from([None, 0.0, 0.5, 1.0]),
    finish=st.sampled_from(["stop", "length"]),
)
rows_strategy = st.lists(
    st.builds(
        lambda step, task, outputs: row(step, task, *outputs),
        st.integers(0, 5),
        st.sampled_from("abc"),
        st.lists(outputs_strategy, min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(rows=rows_strategy, per_prompt=st.integers(1, 3), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_sample_is_kept_or_accounted_for(rows, per_prompt, share):
    kept, rejected = accepted(rows, per_prompt=per_prompt, from_step=0.5, solved_share=share)
    assert len(kept) + sum(rejected.values()) == sum(len(item["outputs"]) for item in rows)
    assert len(set(kept)) == len(kept)
    assert max(Counter(task for task, _ in kept).values(), default=0) <= per_prompt
    right = {
        (item["task"], sample["text"])
        for item in rows
        for sample in item["outputs"]
        if sample["score"] == 1 and sample["finish"] == "stop"
    }
    assert set(kept) <= right


def test_the_policy_learns_from_its_own_answers_twice_and_after_a_crash(world, policy, tmp_path):
    done = check_training_stage(rft, SMALL, {**world, "policy": policy}, tmp_path, 6)
    assert changed_weights(policy.path, done.out)
    kept, card = read_jsonl(done.out / "accepted.jsonl"), read_json(done.out / "accepted.json")
    tasks = {item["id"]: item for item in read_jsonl(world["tasks"] / "train.jsonl")}
    assert card["kept"] == len(kept) == done.metrics.values["accepted"] >= 3
    for item in kept:
        *prompt, answer = item["messages"]
        assert prompt == tasks[item["task"]]["messages"]
        assert answer == {"role": "assistant", "content": tasks[item["task"]]["answer"]}
    samples = sum(len(item["outputs"]) for item in read_jsonl(policy / "rollouts.jsonl"))
    assert card["kept"] + sum(card["rejected"].values()) == samples
    assert card["rejected"]["too early"] > 0


def test_the_system_turn_of_a_rollout_is_trained_on_too():
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"}]
    config = RFTConfig(from_step=0, solved_share=1)
    kept, _ = accept([{**row(0, "a", output()), "messages": messages}], config, np.random.default_rng(0))
    assert kept[0]["messages"] == [*messages, {"role": "assistant", "content": "4"}]


def test_too_few_accepted_rollouts_are_refused_before_training(world, policy, tmp_path):
    context = make_context(tmp_path)
    with pytest.raises(UserError, match=r"Only \d+ rollouts were accepted, fewer than rft\.minimum \(5000\).*Fix: "):
        rft(SMALL.model_copy(update={"minimum": 5000}), {**world, "policy": policy}, context)
    assert not (context.out / "accepted.jsonl").exists()


def test_a_policy_without_rollouts_is_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"no file .*rollouts\.jsonl.*Fix: "):
        rft(SMALL, world, make_context(tmp_path))
