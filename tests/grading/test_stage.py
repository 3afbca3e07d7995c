"""The stage of graders on real files."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.grading.config import DEFAULT_DEFINITIONS, GradersConfig
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
