"""The stage on a real (untrained) checkpoint: the files it owes, the same bytes after a crash, refusals first."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from loopline.agents import stage
from loopline.agents.config import HarnessSearchConfig
from loopline.attempts.config import HarnessConfig
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.inference.trajectory import Trajectory
from loopline.model.checkpoint import save_checkpoint
from loopline.store.artifact import Artifact, content_digest
from tests.environments import world
from tests.support import make_artifact, make_context
from tests.support_model import tiny_model

CONFIG = HarnessSearchConfig(
    search_tasks=8,
    heldout_tasks=6,
    evaluations=3,
    max_new_tokens=6,
    rollout_tasks=2,
    rollout_samples=3,
    temperature=1.0,
)


@pytest.fixture
def inputs(tmp_path: Path) -> Mapping[str, Artifact]:
    """A checkpoint, tasks whose documents exist in both parts, and their grader."""
    tokenizer = world.tokenizer(tmp_path / "tokenizer")
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    save_checkpoint(model, tmp_path / "tokenizer", tmp_path / "policy")
    documents = [{**row, "id": f"{part}-{row['id']}", "part": part} for row in world.DOCUMENTS for part in
                 ("train", "heldout")]  # fmt: skip
    write_jsonl(tmp_path / "tasks" / "documents.jsonl", documents)
    for part in ("train", "heldout"):
        rows = [{**task.model_dump(exclude={"item"}), "part": part} for task in world.tasks()]
        write_jsonl(tmp_path / "tasks" / f"{part}.jsonl", rows)
    write_json(tmp_path / "graders" / "graders.json", {"final_answer": {"type": "final_answer"}})
    return {name: make_artifact(tmp_path / name, name, name) for name in ("policy", "tasks", "graders")}


def test_the_artifact_is_complete(tmp_path: Path, inputs: Mapping[str, Artifact]) -> None:
    ctx = make_context(tmp_path / "run")
    stage.harness(CONFIG, inputs, ctx)
    winner = HarnessConfig.model_validate(read_json(ctx.out / "harness.json"))
    found = read_json(ctx.out / "frontier.json")
    assert found["first"] == "00-first" and winner.max_context_tokens <= 511
    names = sorted(path.name for path in (ctx.out / "candidates").iterdir())
    assert names == sorted(point["name"] for point in found["points"])
    for name in names:
        assert len(read_jsonl(ctx.out / "candidates" / name / "traces.jsonl")) == 8
    pairs = read_jsonl(ctx.out / "heldout.jsonl")
    heldout = [task.id for task in world.tasks()][:6]
    assert [pair["task"] for pair in pairs] == heldout
    summary = read_json(ctx.out / "summary.json")
    assert [row["checkpoint"] for row in summary["evaluations"]] == ["harness:first", "harness:best"]
    for row, side in zip(summary["evaluations"], ("first", "best"), strict=True):
        assert row["task"] == "lookup (tools)" and row["metric"] == "sampled pass@1" and row["n"] == 6
        assert row["value"] == pytest.approx(sum(pair[side]["score"] for pair in pairs) / 6)
    assert summary["comparisons"][0]["n"] == 6
    assert all(report["passed"] for report in read_json(ctx.out / "audit.json").values())
    rollouts = read_jsonl(ctx.out / "rollouts.jsonl")
    assert len(rollouts) == 6 and {row["sample"] for row in rollouts} == {0, 1, 2}
    for row in rollouts:
        assert row["score"] in (0.0, 1.0) and Trajectory.from_json(row["trajectory"]).training_views()


def test_a_crash_changes_no_byte(
    tmp_path: Path, inputs: Mapping[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_context(tmp_path / "whole")
    stage.harness(CONFIG, inputs, whole)
    real, calls = stage.run_tasks, []

    def dies(*args: object) -> object:
        calls.append(args[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "run_tasks", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.harness(CONFIG, inputs, make_context(tmp_path / "cut"))
    assert not (tmp_path / "cut" / "out" / "harness.json").exists()
    resumed = make_context(tmp_path / "cut")
    stage.harness(CONFIG, inputs, resumed)
    assert content_digest(resumed.out) == content_digest(whole.out)
    # The first candidate was not evaluated again.
    assert calls[2:].count(calls[0]) == 1


def test_an_unsound_environment_is_refused_before_the_search(
    tmp_path: Path, inputs: Mapping[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "run_tasks", lambda *args: pytest.fail("it searched"))
    path = inputs["tasks"] / "documents.jsonl"
    write_jsonl(path, [{**row, "text": row["text"].replace("coins", "pence")} for row in read_jsonl(path)])
    ctx = make_context(tmp_path / "run")
    with pytest.raises(UserError, match="tools_match_recorded failed on 8 of 8 tasks"):
        stage.harness(CONFIG, inputs, ctx)
    assert not read_json(ctx.out / "audit.json")["train"]["passed"]


def test_a_task_set_without_an_environment_is_refused(tmp_path: Path, inputs: Mapping[str, Artifact]) -> None:
    with pytest.raises(UserError, match="set task_set to one of lookup"):
        stage.harness(CONFIG.model_copy(update={"task_set": "code"}), inputs, make_context(tmp_path / "run"))
