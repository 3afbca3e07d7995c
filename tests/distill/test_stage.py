"""Distillation end to end: verified traces, two students that differ in them alone, int8 weights."""

import pytest
import torch

from loopline.attempts import ask as ask_module
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.distill.config import QuantizeConfig, StudentBaseConfig, StudentConfig, TracesConfig
from loopline.distill.stage import quantize, student, student_base, traces
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.inference.engine import TorchEngine
from loopline.model.checkpoint import load_model
from loopline.store.artifact import content_digest
from loopline.tasks.task import load_tasks
from loopline.training import finetune
from loopline.training.batch import Batch
from loopline.training.objectives import NextToken
from loopline.training.shards import ShardSet
from loopline.training.sources import FamilySource
from tests.support import make_artifact, make_context
from tests.support_stages import (
    OFTEN,
    PLAN,
    Killed,
    assert_checkpoint,
    changed_weights,
    check_training_stage,
    cut_off,
)

TRACES = TracesConfig(prompts=20, samples=3, temperature=1.2, max_new_tokens=8, minimum=2)
STUDENT = StudentConfig(
    steps=6, examples_per_step=8, sequence_length=224, rows_per_batch=4, runtime=OFTEN,
    general={"code": 0.3, "safety": 0.3, "lookup": 0.4},
)  # fmt: skip


def run_traces(world, context, config=TRACES):
    traces(config, {**world, "teacher": world["policy"]}, context)
    return context


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    return make_artifact(run_traces(world, make_context(tmp_path_factory.mktemp("traces"), seed=3)).out)


def test_only_verified_answers_become_traces(world, made):
    rows, card = read_jsonl(made / "traces.jsonl"), read_json(made / "traces.json")
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
    assert not (context.out / "traces.jsonl").exists()


def test_task_sets_without_a_share_need_no_tasks(world, tmp_path):
    config = TRACES.model_copy(update={"shares": {"arithmetic": 1.0, "poetry": 0.0}})
    context = run_traces(world, make_context(tmp_path), config)
    assert {row["task_set"] for row in read_jsonl(context.out / "traces.jsonl")} == {"arithmetic"}
    with pytest.raises(UserError, match="no tasks of the task set 'poetry'"):
        run_traces(world, make_context(tmp_path / "b"), TRACES.model_copy(update={"shares": {"poetry": 1.0}}))


def test_the_students_base_is_pretrained(world, tmp_path):
    done = check_training_stage(student_base, StudentBaseConfig(steps=6, runtime=OFTEN), world, tmp_path, 6)
    model = load_model(done.out)
    assert model.config.model_dump().items() >= PLAN["student"].items()
    windows = torch.from_numpy(ShardSet(world["data"].path).batch(0, 4, 64))
    total, count, _ = NextToken().loss(model, Batch(windows))
    # Six steps do away with the ids that no text has.
    assert total.item() / count < 5.8
    write_json(tmp_path / "plan/plan.json", {**PLAN, "student": {**PLAN["student"], "vocab_size": 99}})
    with pytest.raises(UserError, match="written with 400 tokens, but the model knows 99"):
        student_base(StudentBaseConfig(), {**world, "plan": make_artifact(tmp_path / "plan")}, make_context(tmp_path))


@pytest.mark.parametrize("with_traces", [True, False])
def test_a_student_is_trained_with_and_without_traces(world, made, tmp_path, with_traces):
    inputs = {"base": world["base"], "tasks": world["tasks"]} | ({"traces": made} if with_traces else {})
    done = check_training_stage(student, STUDENT, inputs, tmp_path, 6)
    assert changed_weights(world["base"].path, done.out)


def test_the_two_students_share_their_general_rows_and_see_as_many_of_each_kind(world, made, tmp_path, monkeypatch):
    sources = []
    plain = finetune.FamilySource

    def watched(*arguments):
        sources.append(plain(*arguments))
        return sources[-1]

    monkeypatch.setattr(finetune, "FamilySource", watched)
    for number, more in enumerate(({"traces": made}, {})):
        student(STUDENT, {"base": world["base"], "tasks": world["tasks"], **more}, make_context(tmp_path / str(number)))
    with_traces, without = sources
    assert isinstance(without, FamilySource)
    general = [name for name in with_traces.shares if name.startswith("general/")]
    assert general == [name for name in without.shares if name.startswith("general/")] and len(general) == 3
    for name in general:
        assert with_traces.shares[name] == pytest.approx(without.shares[name])
    assert with_traces.shares["traces"] == pytest.approx(0.75)
    assert sum(without.shares[name] for name in ("arithmetic", "word_problem", "ordering")) == pytest.approx(0.75)
    assert sum(with_traces.shares.values()) == pytest.approx(1) == pytest.approx(sum(without.shares.values()))
    assert len(with_traces.examples["traces"]) == len(read_jsonl(made / "traces.jsonl"))


@pytest.mark.parametrize("general", [{"code": 3.0, "lookup": 1.0}, {"code": 0.03, "lookup": 0.01, "poetry": 0.0}])
def test_general_shares_are_relative(world, made, tmp_path, monkeypatch, general):
    shares = []
    plain = finetune.FamilySource
    monkeypatch.setattr(
        finetune, "FamilySource", lambda examples, given, *rest: shares.append(given) or plain(examples, given, *rest)
    )
    config = STUDENT.model_copy(update={"general": general, "steps": 1})
    student(config, {"base": world["base"], "tasks": world["tasks"], "traces": made}, make_context(tmp_path))
    expected = {"general/code": 0.25 * 0.75, "general/lookup": 0.25 * 0.25, "traces": 0.75}
    assert shares == [pytest.approx(expected)]


def test_reasoning_alone_needs_no_general_tasks(world, made, tmp_path):
    config = STUDENT.model_copy(update={"reasoning_share": 1.0, "general": {"poetry": 1.0}, "steps": 1})
    write_jsonl(tmp_path / "empty/train.jsonl", [])
    inputs = {"base": world["base"], "tasks": make_artifact(tmp_path / "empty"), "traces": made}
    student(config, inputs, make_context(tmp_path / "c"))
    assert_checkpoint(tmp_path / "c/out")


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
        (student_base, StudentBaseConfig(), "plan", r"no file .*plan\.json"),
        (student, STUDENT, "traces", r"no file .*traces\.jsonl"),
        (quantize, QuantizeConfig(), "checkpoint", r"no file .*config\.json"),
    ],
)
def test_missing_files_are_named_with_the_fix(world, tmp_path, stage, config, role, words):
    inputs = {**world, "teacher": world["policy"], role: make_artifact(tmp_path / "empty")}
    with pytest.raises(UserError, match=words + ".*Fix: "):
        stage(config, inputs, make_context(tmp_path / "c"))
