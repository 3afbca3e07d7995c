"""Rejection sampling as a stage: samples once, keeps what passes, trains on it, survives a crash, says what it did."""

import shutil
from collections import Counter

import pytest
from pydantic import ValidationError

from loopline.attempts import ask as ask_module
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.inference.engine import TorchEngine
from loopline.posttrain.reject import distill, items_of, reject
from loopline.posttrain.reject_config import DistillConfig, RejectConfig
from loopline.posttrain.selection import Accepted, Answer, Group
from loopline.posttrain.sft import sft
from loopline.posttrain.sft_config import DemonstrationsConfig, SFTConfig
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, changed_weights, check_training_stage

SMALL = RejectConfig(
    samples=4, temperature=1.2, max_new_tokens=10, minimum=3, steps=6, batch_size=8, sequence_length=224,
    rows_per_batch=4, prompts=40, runtime=OFTEN,
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(world, tmp_path_factory):
    """The policy with the arithmetic tasks it half knows."""
    tasks = [row for row in read_jsonl(world["tasks"] / "train.jsonl") if row["task_set"] == "arithmetic"]
    path = tmp_path_factory.mktemp("prompts")
    write_jsonl(path / "train.jsonl", tasks)
    return {"policy": world["policy"], "graders": world["graders"], "tasks": make_artifact(path, stage="tasks")}


def test_the_policy_learns_from_what_it_got_right_twice_and_after_a_crash(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(ask_module, "CHUNK", 5)
    done = check_training_stage(reject, SMALL, inputs, tmp_path, 6)
    assert changed_weights(inputs["policy"].path, done.out)
    kept, facts = read_jsonl(done.out / "rows.jsonl"), read_json(done.out / "accepted.json")
    samples = read_jsonl(done.out / "samples.jsonl")
    answers = {row["id"]: row["answer"] for row in read_jsonl(inputs["tasks"] / "train.jsonl")}
    assert facts["kept"] == len(kept) == done.metrics.values["accepted"] >= 3
    assert facts["samples"] == len(samples) == 4 * facts["prompts"]
    assert facts["kept"] + sum(facts["rejected"].values()) == facts["samples"]
    assert sum(facts["pass_rates"].values()) == facts["prompts"]
    for row in kept:
        assert row["messages"][-1] == {"role": "assistant", "content": answers[row["task"]]}
    card = (done.out / "README.md").read_text()
    assert card.startswith("---\nsize_categories:\n- n<1K\n") and f"| answers kept | {len(kept)} |" in card


def test_a_killed_run_samples_no_prompt_twice(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(ask_module, "CHUNK", 5)
    asked = []
    plain = TorchEngine.generate

    def watched(self, prompts, *rest):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(prompts)
        return plain(self, prompts, *rest)

    monkeypatch.setattr(TorchEngine, "generate", watched)
    with pytest.raises(KeyboardInterrupt):
        reject(SMALL, inputs, make_context(tmp_path))
    first, asked[:] = list(asked), []
    monkeypatch.setattr(TorchEngine, "generate", lambda self, p, *rest: asked.append(p) or plain(self, p, *rest))
    context = make_context(tmp_path)
    reject(SMALL, inputs, context)
    sampled = read_jsonl(context.out / "samples.jsonl")
    assert asked and sum(map(len, [*first, *asked])) == len({row["task"] for row in sampled})


def test_held_out_prompts_are_never_sampled(inputs, tmp_path):
    rows = read_jsonl(inputs["tasks"] / "train.jsonl")
    write_jsonl(tmp_path / "tasks" / "train.jsonl", rows)
    write_jsonl(tmp_path / "tasks" / "heldout.jsonl", rows[:5])
    context = make_context(tmp_path / "run")
    settings = SMALL.model_copy(update={"minimum": 1, "steps": 1})
    reject(settings, {**inputs, "tasks": make_artifact(tmp_path / "tasks", stage="tasks")}, context)
    sampled = {row["task"] for row in read_jsonl(context.out / "samples.jsonl")}
    assert sampled and not sampled & {row["id"] for row in rows[:5]}
    assert read_json(context.out / "accepted.json")["prompts_held_out"] == len(rows) - len(sampled) >= 5


def test_too_few_accepted_answers_are_refused_with_the_reasons(inputs, tmp_path):
    config = SMALL.model_copy(update={"minimum": 500})
    with pytest.raises(UserError, match=r"Only \d+ answers .* fewer than minimum \(500\); the others: .*wrong.*Fix: "):
        reject(config, inputs, make_context(tmp_path))


def test_training_may_start_from_another_checkpoint(world, inputs, tmp_path):
    config = SMALL.model_copy(update={"steps": 1})
    context = make_context(tmp_path)
    reject(config, {**inputs, "start": world["base"]}, context)
    again = make_context(tmp_path / "policy")
    reject(config, inputs, again)
    assert (context.out / "samples.jsonl").read_bytes() == (again.out / "samples.jsonl").read_bytes()
    assert changed_weights(context.out, again.out)


def test_the_ids_that_were_sampled_are_the_ids_that_are_trained(world, tmp_path):
    """However the text would be read again, where the start has the policy's tokenizer."""
    answer = Answer("12", 1.0, "stop", 3, (1, 2, 3), (50, 51, 1))
    kept = [Accepted(Group("t", "sums", ({"role": "user", "content": "5+7?"},), (answer,)), answer, 1.0)]
    (item,) = items_of(kept, world["policy"].path, world["base"].path)
    (example,) = item.examples
    assert list(example.tokens) == [1, 2, 3, 50, 51, 1] and list(example.weights) == [0, 0, 0, 1, 1, 1]
    other = tmp_path / "other"
    shutil.copytree(world["base"].path, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    (example,) = items_of(kept, world["policy"].path, other)[0].examples
    tokenizer = load_tokenizer(other)
    assert list(example.tokens) == tokenizer.render(kept[0].to_row()["messages"])


def test_a_teacher_trains_a_student_whose_rows_a_control_may_use(world, tmp_path):
    config = DistillConfig(
        **{name: getattr(SMALL, name) for name in ("max_new_tokens", "minimum", "steps", "batch_size", "runtime")},
        samples=3, temperature=1.2, prompts=10, tasks={"arithmetic": 0.9, "ordering": 0.1}, sequence_length=224,
        share=0.75, replay=DemonstrationsConfig(tasks={"code": 0.6, "lookup": 0.4}),
    )  # fmt: skip
    inputs = {name: world[name] for name in ("tasks", "graders")}
    given = {**inputs, "teacher": world["policy"], "student": world["base"]}
    done = check_training_stage(distill, config, given, tmp_path, 6)
    assert changed_weights(world["base"].path, done.out)
    sources = read_json(done.out / "training.json")["sources"]
    assert {name: entry["share"] for name, entry in sources.items()} == {"accepted": 0.75, "code": 0.15, "lookup": 0.1}
    sampled = read_jsonl(done.out / "samples.jsonl")
    assert Counter(row["task_set"] for row in sampled) == {"arithmetic": 27, "ordering": 3}
    control = make_context(tmp_path / "control")
    settings = SFTConfig(steps=1, batch_size=4, sequence_length=224)
    sft(settings, {"policy": world["base"], "rows.distill": make_artifact(done.out)}, control)
    assert control.metrics.values["rows"] == len(read_jsonl(done.out / "rows.jsonl"))
    with pytest.raises(UserError, match="There is no student to train.*Fix: set `student`"):
        distill(config, {**inputs, "teacher": world["policy"]}, make_context(tmp_path / "none"))


def test_rollouts_of_reinforcement_learning_are_selected_by_the_same_rules(world, tmp_path):
    shutil.copytree(world["policy"].path, tmp_path / "policy")
    tasks = [row for row in read_jsonl(world["tasks"] / "train.jsonl") if row["task_set"] == "arithmetic"]
    rows = [
        {"step": step, "task": task["id"], "task_set": "arithmetic", "messages": task["messages"],
         "outputs": [{"text": task["answer"], "score": 1.0, "finish": "stop", "tokens": 3, "flags": [], "reward": 1.0},
                     {"text": "no", "score": 0.0, "finish": "stop", "tokens": 3, "flags": [], "reward": 0.0}]}
        for step, task in enumerate(tasks)
    ]  # fmt: skip
    write_jsonl(tmp_path / "policy" / "rollouts.jsonl", rows)
    inputs = {"policy": make_artifact(tmp_path / "policy"), "tasks": world["tasks"], "graders": world["graders"]}
    context = make_context(tmp_path / "run")
    reject(SMALL.model_copy(update={"from_rollouts": True, "steps": 1}), inputs, context)
    facts = read_json(context.out / "accepted.json")
    late = len(rows) - len(rows) // 2
    assert facts["source"] == "rollouts" and facts["kept"] == late
    assert facts["rejected"]["too early"] == len(rows) // 2 * 2 and facts["rejected"]["wrong"] == late
    assert not (context.out / "samples.jsonl").exists()


def test_a_share_is_left_to_replay_or_not():
    with pytest.raises(ValidationError, match="give both share below 1 and replay.tasks"):
        RejectConfig(share=0.5)
    with pytest.raises(ValidationError, match="give both share below 1 and replay.tasks"):
        RejectConfig(replay=DemonstrationsConfig(tasks={"code": 1.0}))
