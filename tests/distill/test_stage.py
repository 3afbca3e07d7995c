"""Distillation end to end: verified traces, two students that differ in them alone, int8 weights."""

import pytest
import torch

from loopline.attempts import ask as ask_module
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.distill.config import QuantizeConfig, TracesConfig
from loopline.distill.stage import quantize, traces
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.inference.engine import TorchEngine
from loopline.store.artifact import content_digest
from loopline.tasks.task import load_tasks
from tests.support import make_artifact, make_context
from tests.support_stages import (
    Killed,
    assert_checkpoint,
    cut_off,
)

TRACES = TracesConfig(prompts=20, samples=3, temperature=1.2, max_new_tokens=8, minimum=2)


def run_traces(world, context, config=TRACES):
    traces(config, {**world, "teacher": world["policy"]}, context)
    return context


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    return make_artifact(run_traces(world, make_context(tmp_path_factory.mktemp("traces"), seed=3)).out)


def test_only_verified_answers_become_traces(world, made):
    rows, card = read_jsonl(made / "rows.jsonl"), read_json(made / "traces.json")
    tasks = {task.id: task for task in load_tasks(world["tasks"] / "train.jsonl")}
    assert card == {"prompts": 20, "verified": card["verified"], "kept": len(rows)}
    assert card["verified"] >= len(rows) == len({row["task"] for row in rows}) > 2
    with GraderSet.from_json(world["graders"] / "graders.json") as graders:
        for row in rows:
            *prompt, answer = row["messages"]
            task = tasks[row["task"]]
            assert prompt == list(task.messages) and row["task_set"] == task.task_set and answer["role"] == "assistant"
            assert graders.grade([Sample(task, answer["content"])])[0].score == 1


def test_traces_are_the_same_bytes_twice_and_after_a_crash(world, made, tmp_path, monkeypatch):
    monkeypatch.setattr(ask_module, "CHUNK", 6)
    whole = run_traces(world, make_context(tmp_path / "whole", seed=3))
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, TorchEngine, "generate", 2)
        with pytest.raises(Killed):
            run_traces(world, make_context(tmp_path / "torn", seed=3))
    with pytest.MonkeyPatch.context() as patch:
        # Two of four parts were done, so two calls are left.
        cut_off(patch, TorchEngine, "generate", 2)
        torn = run_traces(world, make_context(tmp_path / "torn", seed=3))
    assert content_digest(whole.out) == content_digest(torn.out) == made.digest
    other = run_traces(world, make_context(tmp_path / "other", seed=4))
    assert content_digest(other.out) != made.digest


def test_a_teacher_that_solves_nothing_is_refused(world, tmp_path):
    context = make_context(tmp_path / "a")
    with pytest.raises(UserError, match=r"solved only 0 of 20 tasks, fewer than traces\.minimum \(2\).*Fix: distill"):
        traces(TRACES, {**world, "teacher": world["base"]}, context)
    assert not (context.out / "rows.jsonl").exists()


def test_task_sets_without_a_share_need_no_tasks(world, tmp_path):
    config = TRACES.model_copy(update={"shares": {"arithmetic": 1.0, "poetry": 0.0}})
    context = run_traces(world, make_context(tmp_path), config)
    assert {row["task_set"] for row in read_jsonl(context.out / "rows.jsonl")} == {"arithmetic"}
    with pytest.raises(UserError, match="no tasks of the task set 'poetry'"):
        run_traces(world, make_context(tmp_path / "b"), TRACES.model_copy(update={"shares": {"poetry": 1.0}}))


def test_int8_weights_are_close_and_the_same_twice(world, tmp_path):
    inputs = {"checkpoint": world["policy"]}
    contexts = [make_context(tmp_path / name) for name in ("a", "b")]
    for context in contexts:
        quantize(QuantizeConfig(), inputs, context)
    out = contexts[0].out
    assert_checkpoint(out)
    assert content_digest(out) == content_digest(contexts[1].out)
    values = contexts[0].metrics.values
    assert values["bytes_after"] == (out / "model.safetensors").stat().st_size < 0.6 * values["bytes_before"]
    engines = [TorchEngine.from_checkpoint(path) for path in (world["policy"].path, out)]
    tasks = load_tasks(world["tasks"] / "train.jsonl", ["arithmetic"])
    tokens = [torch.tensor([engines[0].tokenizer.render(task.messages, add_generation_prompt=True)]) for task in tasks]
    with torch.no_grad():
        for row in tokens:
            ours, theirs = (engine.model.logits(engine.model(row)) for engine in engines)
            assert float((ours - theirs).std()) < 0.05 * float(ours.std())
            # What the policy is sure of survives the rounding.
            assert int(ours[0, -1].argmax()) == int(theirs[0, -1].argmax())


@pytest.mark.parametrize(
    ("stage", "config", "role", "words"),
    [
        (traces, TRACES, "teacher", r"no file .*config\.json"),
        (traces, TRACES, "tasks", r"no file .*train\.jsonl"),
        (traces, TRACES, "graders", r"no file .*graders\.json"),
        (quantize, QuantizeConfig(), "checkpoint", r"no file .*config\.json"),
    ],
)
def test_missing_files_are_named_with_the_fix(world, tmp_path, stage, config, role, words):
    inputs = {**world, "teacher": world["policy"], role: make_artifact(tmp_path / "empty")}
    with pytest.raises(UserError, match=words + ".*Fix: "):
        stage(config, inputs, make_context(tmp_path / "c"))
