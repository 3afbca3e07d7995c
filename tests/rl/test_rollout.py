"""Rollouts become batches: who is compared with whom, what the loss sees, and that a step can be repeated."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.files import read_jsonl
from loopline.grading.grade import Grade
from loopline.grading.graders import GraderSet
from loopline.grading.reward import RewardConfig
from loopline.inference.engine import Completion
from loopline.rl.advantage import group_advantages
from loopline.rl.examples import build_examples
from loopline.rl.explain import explain
from loopline.rl.objective import GRPO
from loopline.rl.rollout import gather_records
from loopline.training.batch import pack
from loopline.training.loop import accumulate
from tests.rl.support import CONFIG, ParityGraders, make_group, make_source, task
from tests.support_graders import DEFINITIONS
from tests.support_model import tiny_model


def rows_of(batches):
    """(tokens, weights, advantages, old log-probs, normalizer) of every packed sequence, its prompt included."""
    found = []
    for batch in batches:
        for number in range(int(batch.sequences_BT.max()) + 1):
            where = batch.sequences_BT == number
            if batch.branches is not None:
                row, continued = int(torch.nonzero(where)[0, 0]), int(batch.branches.after_BT[where].max())
                where[row] |= (batch.branches.part_BT[row] == continued) & (continued >= 0)
            numbers = [batch.extras["advantages"], batch.extras["old_logprobs"]]
            found.append(
                (
                    batch.tokens_BT[where].tolist(),
                    batch.weights_BT[where].tolist(),
                    *(values[where].tolist() for values in numbers),
                    float(batch.scalars["normalizer"][number]),
                )
            )
    return found


def test_every_prompt_is_answered_by_a_group_and_compared_within_it(tokenizer, graders, tmp_path):
    source = make_source(tokenizer, graders, tmp_path)
    batches = source.next(0)
    records = read_jsonl(tmp_path / "000000.jsonl")
    assert len(records) == 4
    assert Counter(row["task_set"] for row in records) == {"arithmetic": 2, "ordering": 2}
    assert all(len(row["outputs"]) == 4 for row in records)
    expected = []
    for row in records:
        rewards = [output["reward"] for output in row["outputs"]]
        assert rewards == [output["score"] for output in row["outputs"]]
        advantages = group_advantages(rewards)
        if not any(advantages):
            continue
        prompt = tokenizer.render(row["messages"], add_generation_prompt=True)
        for output, reward, advantage in zip(row["outputs"], rewards, advantages, strict=True):
            if reward is not None:
                assert (advantage > 0) == (reward == 1)
                expected.append((prompt, output["tokens"], pytest.approx(advantage, rel=1e-5)))
    found = rows_of(batches)
    assert len(expected) == len(found) > 0
    for tokens, weights, advantages, old, normalizer in found:
        written = int(normalizer)
        prompt = tokens[:-written]
        assert weights == [0.0] * len(prompt) + [1.0] * written
        assert advantages[: len(prompt)] == old[: len(prompt)] == [0.0] * len(prompt)
        assert len(set(advantages[len(prompt) :])) == 1 and all(value < 0 for value in old[len(prompt) :])
        expected.remove((prompt, written, advantages[-1]))
    facts = source.metrics()
    silent = sum(not any(group_advantages([o["reward"] for o in row["outputs"]])) for row in records)
    assert facts["rollout/zero_signal_share"] == silent / 4
    assert facts["rollout/ungradable"] == sum(o["reward"] is None for row in records for o in row["outputs"])


def test_log_probs_are_those_of_the_policy_that_samples(tokenizer, graders, tmp_path):
    config = CONFIG.model_copy(update={"temperature": 0.8})
    source = make_source(tokenizer, graders, tmp_path, config=config)
    _, _, metrics = GRPO(0.2, 0.2, 0.8).loss(source.engine.model, source.next(0)[0])
    assert metrics["mismatch_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_low"] == metrics["clip_high"] == 0


def group(scores, finishes=None, tokens=3):
    finishes = finishes or ["stop"] * len(scores)
    completions = [
        Completion([20 + i] * (tokens + i), [-1.0 - i] * (tokens + i), finish, 5) for i, finish in enumerate(finishes)
    ]
    grades = [Grade(score) for score in scores]
    advantages = group_advantages(scores)
    return make_group(completions, grades, list(scores), advantages)


def test_groups_without_signal_are_dropped_unless_kept():
    groups = [group([1.0, 1.0]), group([0.0, 1.0]), group([0.0, None])]
    assert len(build_examples(groups, CONFIG)) == 2
    kept = build_examples(groups, CONFIG.model_copy(update={"drop_zero_signal": False}))
    # The ungradable one stays out; zero advantages count in the normalizer, though they push nothing.
    assert [example.scalars["normalizer"] for example in kept] == [3, 4, 3, 4, 3]
    assert [example.extras["advantages"][-1] for example in kept] == pytest.approx([0, 0, -0.707, 0.707, 0], abs=1e-3)


def test_an_ungradable_answer_is_no_failure():
    (right, wrong) = build_examples([group([1.0, None, 0.0])], CONFIG)
    assert right.extras["advantages"][-1] == pytest.approx(-wrong.extras["advantages"][-1])
    assert [right.tokens[-1], wrong.tokens[-1]] == [20, 22]
    assert build_examples([group([None, None])], CONFIG.model_copy(update={"drop_zero_signal": False})) == []


def test_truncated_answers_are_masked_only_when_told():
    cut = group([1.0, 0.0, 0.0], ["stop", "length", "stop"])
    masked = CONFIG.model_copy(update={"mask_truncated": True})
    assert [example.tokens[-1] for example in build_examples([cut], CONFIG)] == [20, 21, 22]
    left = build_examples([cut], masked)
    assert [example.tokens[-1] for example in left] == [20, 22]
    # Its reward still counts in the group's mean.
    assert left[0].extras["advantages"][-1] == pytest.approx(group_advantages([1.0, 0.0, 0.0])[0])


@pytest.mark.parametrize(
    ("normalizer", "weights", "normalizers"),
    [("token", [1, 1], [3, 4]), ("sequence", [1 / 3, 1 / 4], [1, 1]), ("constant", [1, 1], [6, 6])],
)
def test_normalizers(normalizer, weights, normalizers):
    examples = build_examples([group([1.0, 0.0])], CONFIG.model_copy(update={"normalizer": normalizer}))
    assert [example.weights[-1] for example in examples] == pytest.approx(weights)
    assert [example.scalars["normalizer"] for example in examples] == normalizers


@settings(max_examples=10)
@given(
    rows=st.integers(1, 9),
    row_length=st.integers(24, 90),
    normalizer=st.sampled_from(["token", "sequence", "constant"]),
)
def test_the_loss_is_divided_by_the_whole_steps_count_however_it_is_split(rows, row_length, normalizer):
    model = tiny_model(4)
    config = CONFIG.model_copy(update={"normalizer": normalizer})
    examples = build_examples([group([1.0, 0.0, None, 0.5]), group([1.0, 1.0]), group([0.0, 1.0], tokens=9)], config)
    objective = GRPO(0.2, 0.3, 1.0)

    def step(batches):
        model.zero_grad()
        count, metrics = accumulate(model, objective, batches)
        return count, metrics["loss"], torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    count, loss, gradient = step(pack(examples, 1000, 1))
    parts = step(pack(examples, row_length, rows))
    expected = {"token": 3 + 4 + 6 + 9 + 10, "sequence": 5, "constant": 5 * config.max_new_tokens}[normalizer]
    assert count == parts[0] == expected
    assert parts[1] == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(parts[2], gradient, atol=1e-6, rtol=1e-3)


def timeless(source):
    """The source's numbers without its speed."""
    return {name: value for name, value in source.metrics().items() if "per_second" not in name}


def same(one, other):
    return rows_of(one) == rows_of(other)


def test_a_resumed_source_gives_what_an_uninterrupted_one_gives(tokenizer, graders, tmp_path):
    whole = make_source(tokenizer, graders, tmp_path / "whole")
    steps = [whole.next(step) for step in range(4)]
    resumed = make_source(tokenizer, graders, tmp_path / "resumed")
    first = [resumed.next(step) for step in range(2)]
    state = json.loads(json.dumps(resumed.state_dict()))
    resumed = make_source(tokenizer, graders, tmp_path / "resumed")
    resumed.load_state_dict(state)
    again = [*first, resumed.next(2), resumed.next(3)]
    assert all(same(a, b) for a, b in zip(steps, again, strict=True))
    assert not same(steps[0], steps[1])
    assert timeless(resumed) == timeless(whole) and explain(resumed.facts) == explain(whole.facts)
    assert gather_records(tmp_path / "whole", 4) == gather_records(tmp_path / "resumed", 4)
    assert [row["step"] for row in gather_records(tmp_path / "whole", 3)] == [0] * 4 + [1] * 4 + [2] * 4


def test_samples_come_from_the_weights_of_the_moment_and_carry_their_version(tokenizer, graders, tmp_path):
    model = tiny_model(3, max_position_embeddings=256)
    source = make_source(tokenizer, graders, tmp_path, model=model)
    versions = []
    generate = source.engine.generate

    def watched(*arguments):
        groups = generate(*arguments)
        versions.append({completion.policy_version for group in groups for completion in group})
        return groups

    source.engine.generate = watched
    before = source.next(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = source.next(3)
    source.next(4)
    assert versions == [{3}, {3}, {4}]
    assert not same(before, after)


def test_long_prompts_and_answers_get_rows_that_hold_them(tokenizer, graders, tmp_path):
    source = make_source(tokenizer, graders, tmp_path, source={"row_length": 8})
    assert max(len(row[0]) for row in rows_of(source.next(0))) > 8


def test_a_graders_component_is_asked_and_paid(tokenizer, tmp_path):
    with ParityGraders() as graders:
        reward = RewardConfig(weights={"outcome": 1.0, "naive_contains": 0.5})
        make_source(tokenizer, graders, tmp_path, reward=reward).next(0)
        assert graders.asked == {None: 16, "naive_contains": 16}
    outputs = [output for row in read_jsonl(tmp_path / "000000.jsonl") for output in row["outputs"]]
    for output in outputs:
        assert output["reward"] == (None if output["score"] is None else 1.5 * output["score"])


def test_a_step_in_which_nothing_differs_has_no_batches(tokenizer, tmp_path):
    with GraderSet(DEFINITIONS) as graders:
        tasks = {"arithmetic": [task(n, grader="final_answer") for n in range(5)]}
        source = make_source(tokenizer, graders, tmp_path, tasks_by_set=tasks, shares={"arithmetic": 1.0})
        assert source.next(0) == []
    assert source.metrics()["rollout/zero_signal_share"] == 1
    assert "nothing to learn: " in source.why()
