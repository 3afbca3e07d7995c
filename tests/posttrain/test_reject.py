"""Rejection sampling as a stage: samples once, keeps what passes, trains on it, survives a crash, says what it did."""

import pytest

from loopline.attempts import ask as ask_module
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_jsonl
from loopline.inference.engine import TorchEngine
from loopline.posttrain.config import RejectConfig
from loopline.posttrain.stage import reject
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
    kept, facts = read_jsonl(done.out / "accepted.jsonl"), read_json(done.out / "accepted.json")
    samples = read_jsonl(done.out / "samples.jsonl")
    answers = {row["id"]: row["answer"] for row in read_jsonl(inputs["tasks"] / "train.jsonl")}
    assert facts["kept"] == len(kept) == done.metrics.values["accepted"] >= 3
    assert facts["samples"] == sum(len(group["outputs"]) for group in samples) == 4 * len(samples)
    assert facts["kept"] + sum(facts["rejected"].values()) == facts["samples"]
    assert sum(facts["pass_rates"].values()) == len(samples)
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
    assert asked and sum(map(len, [*first, *asked])) == len(sampled)


def test_held_out_prompts_are_never_sampled(inputs, tmp_path):
    rows = read_jsonl(inputs["tasks"] / "train.jsonl")
    write_jsonl(tmp_path / "held" / "train.jsonl", rows[:5])
    held = {"heldout": make_artifact(tmp_path / "held", stage="heldout")}
    context = make_context(tmp_path / "run")
    reject(SMALL.model_copy(update={"minimum": 1, "steps": 1}), {**inputs, **held}, context)
    sampled = {group["task"] for group in read_jsonl(context.out / "samples.jsonl")}
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
