"""The release stage on real (untrained) checkpoints: pairing, parts, the last check, and what a release carries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json, write_jsonl
from loopline.model.checkpoint import load_model
from loopline.release.config import ReleaseConfig, ToolTrial
from loopline.release.evidence import read_items
from loopline.release.stage import candidates_of, release
from loopline.store.artifact import Artifact, content_digest
from tests.environments import world
from tests.release.synthetic import SETS, write_checkpoint, write_evaluation
from tests.support import make_artifact, make_context

CONFIG = ReleaseConfig(latency_prompts=1)
GOOD, BETTER = dict.fromkeys(SETS, 0.75), dict.fromkeys(SETS, 0.9)


def about(path: Path, checkpoint: Artifact) -> Artifact:
    """An evaluation artifact that says which checkpoint it is about."""
    artifact = make_artifact(path, f"some-{path.name}", "evaluation")
    meta = artifact.meta | {"inputs": {"checkpoint": {"stage": checkpoint.stage, "digest": checkpoint.digest}}}
    write_json(path / "artifact.json", meta)
    return Artifact.load(path)


def line(root: Path, scores: Mapping[str, dict], heldout: Mapping[str, dict] | None = None) -> dict[str, Artifact]:
    """Checkpoints and evaluations whose nodes' names say nothing about each other."""
    inputs = {}
    for number, (name, rates) in enumerate(scores.items()):
        checkpoint = make_artifact(write_checkpoint(root / name, number), name, "checkpoint")
        held = (heldout or {}).get(name)
        evaluation = write_evaluation(root / f"measured{number}", rates, name, n=300, heldout=held)
        inputs[f"candidates.{name}"] = checkpoint
        inputs[f"evaluations.node-{9 - number}"] = about(evaluation, checkpoint)
    row = {"task_set": "sums", "messages": [{"role": "user", "content": "1+1=?"}], "answer": "2", "grader": "g"}
    for part in ("dev", "heldout"):
        write_jsonl(root / "tasks" / f"{part}.jsonl", [{**row, "id": f"sums-{part}-0", "part": part}])
    write_json(root / "graders" / "graders.json", {"g": {"type": "final_answer"}})
    inputs["tasks"] = make_artifact(root / "tasks", "tasks", "tasks")
    inputs["graders"] = make_artifact(root / "graders", "graders", "graders")
    return inputs


def test_a_release_carries_the_champion_its_evaluation_and_its_reasons(tmp_path):
    inputs = line(tmp_path, {"first": GOOD, "second": BETTER})
    (inputs["candidates.first"] / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    ctx = make_context(tmp_path / "run")
    release(CONFIG, inputs, ctx)
    found = read_json(ctx.out / "release.json")
    assert found["champion"] == "second" and found["final_check"]["passed"] and found["licence"] == "apache-2.0"
    assert found["final_check"]["part"] == "heldout" and found["control"]["name"] == "first"
    assert found["objective"]["weights"] == dict.fromkeys(sorted(SETS), 0.2)
    left, right = load_model(ctx.out / "model"), load_model(inputs["candidates.second"].path)
    assert all((left.state_dict()[name] == value).all() for name, value in right.state_dict().items())
    assert (ctx.out / "model" / "LICENSE").exists() and not (ctx.out / "harness.json").exists()
    assert read_items(ctx.out / "evaluation", "sampled", "dev", {})
    card = (ctx.out / "MODEL_CARD.md").read_text()
    assert "license: apache-2.0" in card and "Held-out tasks" in card
    again = make_context(tmp_path / "again")
    release(CONFIG, inputs, again)
    assert content_digest(again.out) == content_digest(ctx.out)


def test_held_out_answers_do_not_choose_but_check(tmp_path):
    """`second` is better on the development part and far worse on the held-out one."""
    inputs = line(tmp_path, {"first": GOOD, "second": BETTER}, {"second": dict.fromkeys(SETS, 0.4)})
    with pytest.raises(UserError, match="second was chosen .* FAILS THE LAST CHECK .*no regression|refusal"):
        release(CONFIG.model_copy(update={"reference": "first"}), inputs, make_context(tmp_path / "stop"))
    ctx = make_context(tmp_path / "marked")
    settings = {"reference": "first", "final_check": "reference"}
    release(CONFIG.model_copy(update=settings), inputs, ctx)
    found = read_json(ctx.out / "release.json")
    assert found["champion"] == "first" and not found["passed"] and "THE LAST CHECK FAILED" in found["reasons"][0]
    assert "does not keep its own gates" in (ctx.out / "MODEL_CARD.md").read_text()


def test_evaluations_are_paired_by_what_they_are_about(tmp_path):
    inputs = line(tmp_path, {"first": GOOD, "second": BETTER})
    pairs = {one.name: one.evaluation.stage for one in candidates_of(CONFIG, inputs)}
    assert pairs == {"first": "some-measured0", "second": "some-measured1"}
    del inputs["evaluations.node-8"]
    assert [one.name for one in candidates_of(CONFIG, inputs)] == ["first"]
    named = CONFIG.model_copy(update={"candidates": ("first", "second")})
    with pytest.raises(UserError, match="candidate 'second' was not evaluated"):
        candidates_of(named, inputs)
    with pytest.raises(UserError, match="There is no checkpoint 'third'"):
        candidates_of(CONFIG.model_copy(update={"candidates": ("third",)}), inputs)
    with pytest.raises(UserError, match="no candidates"):
        candidates_of(CONFIG, {name: item for name, item in inputs.items() if "evaluations" not in name})


def test_tool_use_is_measured_where_tasks_are_tagged_tools(tmp_path):
    inputs = line(tmp_path, {"first": GOOD})
    tasks = tmp_path / "tasks"
    for part in ("dev", "heldout"):
        rows = [{**task.model_dump(exclude={"item"}), "part": part} for task in world.tasks()]
        write_jsonl(tasks / f"{part}.jsonl", rows)
    write_jsonl(tasks / "documents.jsonl", [{**row, "part": "dev"} for row in world.DOCUMENTS] +
                [{**row, "id": f"held-{row['id']}", "part": "heldout"} for row in world.DOCUMENTS])  # fmt: skip
    write_json(tmp_path / "graders" / "graders.json", {"final_answer": {"type": "final_answer"}})
    ctx = make_context(tmp_path / "run")
    release(CONFIG.model_copy(update={"tools": ToolTrial(tasks=2, max_new_tokens=8)}), inputs, ctx)
    found = read_json(ctx.out / "release.json")
    assert found["candidates"][0]["tools"]["n"] == found["final_check"]["tools"]["n"] == 2
    assert read_json(ctx.out / "harness.json")["environment"] == "search"
