"""The grading stages on real files: an audited set of graders, and an evaluation of a tiny checkpoint."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json
from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.stage import evaluate
from loopline.grading.config import DEFAULT_DEFINITIONS, FAMILIES, REASONING, GradersConfig
from loopline.grading.stage import graders
from loopline.model.checkpoint import save_checkpoint
from loopline.store.artifact import content_digest
from loopline.tasks.generators.config import GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import write_tasks
from tests.support import make_artifact, make_context
from tests.support_model import tiny_model, tiny_tokenizer

COUNTS = TrainCounts(arithmetic=30, word_problem=30, ordering=30, code=30, format=30, safety=40, lookup=30)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    write_tasks(GeneratorConfig(train=COUNTS, heldout=12), 1, root / "tasks")
    tokenizer = tiny_tokenizer(root / "tokenizer")
    save_checkpoint(
        tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=512),
        root / "tokenizer",
        root / "checkpoint",
    )
    write_json(root / "graders" / "graders.json", DEFAULT_DEFINITIONS)
    return {
        "tasks": make_artifact(root / "tasks", stage="tasks"),
        "checkpoint": make_artifact(root / "checkpoint", stage="sft"),
        "graders": make_artifact(root / "graders", stage="graders"),
    }


def test_graders_are_audited_and_written(tmp_path, inputs):
    contexts = [make_context(tmp_path / name, seed=3) for name in ("a", "b")]
    for context in contexts:
        graders(GradersConfig(audit_tasks=8), inputs, context)
    out = contexts[0].out
    audit = read_json(out / "audit.json")
    assert read_json(out / "graders.json") == DEFAULT_DEFINITIONS
    assert {name for name, entry in audit.items() if not entry["passed"]} == {"naive_contains"}
    assert all(set(row) >= {"probe", "n", "mean", "max", "pays"} for e in audit.values() for row in e["probes"])
    assert content_digest(contexts[0].out) == content_digest(contexts[1].out)


def test_a_required_grader_that_can_be_exploited_stops_the_line(tmp_path, inputs):
    context = make_context(tmp_path)
    with pytest.raises(UserError, match="'naive_contains' fails its audit: answer_spam pays"):
        graders(GradersConfig(required=("naive_contains",), audit_tasks=8), inputs, context)
    assert not (context.out / "graders.json").exists()
    with pytest.raises(UserError, match="`required` names the grader 'nobody'"):
        graders(GradersConfig(required=("nobody",)), inputs, make_context(tmp_path / "other"))


CONFIG = EvaluateConfig(n=6, max_new_tokens=8)


def test_evaluation_of_a_checkpoint(tmp_path, inputs):
    contexts = [make_context(tmp_path / name, seed=5) for name in ("a", "b")]
    for context in contexts:
        evaluate(CONFIG, inputs, context)
    items = read_jsonl(contexts[0].out / "items.jsonl")
    assert len(items) == 2 * 6 * len(FAMILIES)
    columns = {"task", "task_set", "mode", "score", "output", "tokens", "finish", "thinking", "flags"}
    assert all(set(row) - {"unsafe"} == columns for row in items)
    assert all(("unsafe" in row) == (row["task_set"] == "safety") for row in items)
    unsafe = sum(row.get("unsafe", False) for row in items) // 2
    assert all(1 <= row["tokens"] <= 8 for row in items)
    # An untrained model seldom stops within eight tokens: what is cut off scores zero and says so.
    cut = [row for row in items if row["finish"] == "length"]
    assert cut and all(row["score"] == 0 and row["flags"] == ["truncated"] for row in cut)
    rows = read_json(contexts[0].out / "summary.json")["evaluations"]
    assert {(row["task"], row["metric"]) for row in rows} == {
        (task, f"{mode} pass@1") for task in (*FAMILIES, "reasoning", "refusal") for mode in ("sampled", "greedy")
    }
    for row in rows:
        assert row["checkpoint"] == "sft" and row["n"] == {"reasoning": 18, "refusal": unsafe}.get(row["task"], 6)
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["ungradable"] == 0
    assert content_digest(contexts[0].out) == content_digest(contexts[1].out)
    assert (contexts[0].out / "log" / "latency.json").exists()


def test_a_task_set_may_be_asked_more_than_the_others(tmp_path, inputs):
    context = make_context(tmp_path)
    config = EvaluateConfig(task_sets=("format", "safety"), n=2, n_by_set={"safety": 5}, max_new_tokens=2)
    evaluate(config, inputs, context)
    rows = read_json(context.out / "summary.json")["evaluations"]
    assert {(row["task"], row["n"]) for row in rows if row["task"] != "refusal"} == {("format", 2), ("safety", 5)}


def test_a_sample_depends_on_its_task_and_the_seed_only(tmp_path, inputs):
    few, many, other = (make_context(tmp_path / name, seed=seed) for name, seed in (("f", 5), ("m", 5), ("o", 6)))
    settings = {"task_sets": ("arithmetic",), "modes": ("sampled",), "max_new_tokens": 8}
    evaluate(EvaluateConfig(n=3, **settings), inputs, few)
    evaluate(EvaluateConfig(n=12, **settings), inputs, many)
    evaluate(EvaluateConfig(n=3, **settings), inputs, other)
    outputs = [{row["task"]: row["output"] for row in read_jsonl(c.out / "items.jsonl")} for c in (few, many, other)]
    assert all(outputs[1][task] == text for task, text in outputs[0].items())
    assert outputs[0] != outputs[2]


def test_reasoning_is_reported_only_when_all_of_it_was_asked(tmp_path, inputs):
    context = make_context(tmp_path)
    evaluate(EvaluateConfig(task_sets=REASONING[:2], n=2, modes=("greedy",), max_new_tokens=2), inputs, context)
    rows = read_json(context.out / "summary.json")["evaluations"]
    assert [row["task"] for row in rows] == list(REASONING[:2])


def test_a_missing_family_is_refused_before_anything_is_computed(tmp_path, inputs):
    with pytest.raises(UserError, match="no tasks of the task set 'poetry'"):
        evaluate(EvaluateConfig(task_sets=("poetry",)), inputs, make_context(tmp_path))
