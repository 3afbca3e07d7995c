"""The stage on a real (untrained) checkpoint: the files it owes, the same bytes after a crash, refusals first."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from loopline.agents import stage
from loopline.agents.config import HarnessSearchConfig
from loopline.attempts.config import HarnessConfig, read_harness
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.environments.search import SearchEnvironment
from loopline.inference.trajectory import Trajectory
from loopline.model.checkpoint import save_checkpoint
from loopline.store.artifact import Artifact, content_digest
from tests.environments import world
from tests.support import make_artifact, make_context
from tests.support_model import tiny_model

PARTS = ("train", "dev", "heldout")
CONFIG = HarnessSearchConfig(
    search_tasks=8,
    heldout_tasks=6,
    evaluations=3,
    max_new_tokens=6,
    rollout_tasks=2,
    rollout_samples=3,
    temperature=1.0,
    # Six tokens keep the tests short, and are too few for the recorded solutions.
    oracle="allow_below_one",
)


@pytest.fixture
def inputs(tmp_path: Path) -> Mapping[str, Artifact]:
    """A checkpoint, tasks whose documents exist in both parts, and their grader."""
    tokenizer = world.tokenizer(tmp_path / "tokenizer")
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    save_checkpoint(model, tmp_path / "tokenizer", tmp_path / "policy")
    documents = [{**row, "id": f"{part}-{row['id']}", "part": part} for row in world.DOCUMENTS for part in PARTS]
    write_jsonl(tmp_path / "tasks" / "documents.jsonl", documents)
    for part in PARTS:
        rows = [{**task.model_dump(exclude={"item"}), "part": part} for task in world.tasks()]
        write_jsonl(tmp_path / "tasks" / f"{part}.jsonl", rows)
    write_json(tmp_path / "graders" / "graders.json", {"final_answer": {"type": "final_answer"}})
    return {name: make_artifact(tmp_path / name, name, name) for name in ("policy", "tasks", "graders")}


def test_the_artifact_is_complete(tmp_path: Path, inputs: Mapping[str, Artifact]) -> None:
    ctx = make_context(tmp_path / "run")
    stage.harness(CONFIG, inputs, ctx)
    winner, environment = read_harness(ctx.out / "harness.json")
    assert environment == "search"
    found = read_json(ctx.out / "frontier.json")
    assert found["first"] == "00-first" and winner.max_context_tokens == 512 - 6
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
        assert row["task"] == "shop" and row["metric"] == "sampled pass@1" and row["n"] == 6
        assert row["value"] == pytest.approx(sum(pair[side]["score"] for pair in pairs) / 6)
    assert summary["comparisons"][0]["n"] == 6
    # Nothing can be answered in six tokens: the ceiling says so beside every score.
    assert summary["oracle"] == 0 and all(row["oracle"] == 0 for row in summary["evaluations"])
    assert summary["control"] == {"name": "harness:first", "score": summary["evaluations"][0]["value"], "oracle": 0}
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
    with pytest.raises(UserError, match="tools_match_recorded failed on 15 of 15 tasks"):
        stage.harness(CONFIG, inputs, ctx)
    assert not read_json(ctx.out / "audit.json")["train"]["passed"]


def test_a_first_harness_that_handicaps_is_refused_before_the_search(
    tmp_path: Path, inputs: Mapping[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of two things need four turns: with three, the recorded solutions themselves fail."""
    monkeypatch.setattr(stage, "run_tasks", lambda *args: pytest.fail("it searched"))
    fair = CONFIG.model_copy(update={"oracle": "required", "max_new_tokens": 120, "heldout_tasks": 15})
    three = fair.model_copy(update={"first": HarnessConfig(max_turns=3)})
    with pytest.raises(UserError, match=r"recorded solutions score .*max_turns 3.*oracle: allow_below_one"):
        stage.harness(three, inputs, make_context(tmp_path / "three"))
    with pytest.raises(UserError, match=r"on the dev tasks.*max_new_tokens 6\b"):
        stage.harness(CONFIG.model_copy(update={"oracle": "required"}), inputs, make_context(tmp_path / "six"))
    reached: list[object] = []
    monkeypatch.setattr(stage, "_search", lambda *args: reached.append(args) or pytest.skip("the default is fair"))
    with pytest.raises(pytest.skip.Exception):
        stage.harness(fair, inputs, make_context(tmp_path / "fair"))
    assert reached


def test_the_search_sees_development_tasks_only(tmp_path: Path, inputs: Mapping[str, Artifact]) -> None:
    for part in PARTS:
        file = inputs["tasks"] / f"{part}.jsonl"
        write_jsonl(file, [{**row, "id": f"{part}: {row['id']}"} for row in read_jsonl(file)])
    ctx = make_context(tmp_path / "run")
    stage.harness(CONFIG, inputs, ctx)
    traces = [row for file in ctx.out.glob("candidates/*/traces.jsonl") for row in read_jsonl(file)]
    assert {row["task"].split(":")[0] for row in traces} == {"dev"}
    assert {row["task"].split(":")[0] for row in read_jsonl(ctx.out / "heldout.jsonl")} == {"heldout"}
    assert {row["task"].split(":")[0] for row in read_jsonl(ctx.out / "rollouts.jsonl")} == {"train"}


def test_names_that_are_not_there_are_refused(tmp_path: Path, inputs: Mapping[str, Artifact]) -> None:
    with pytest.raises(UserError, match="no tasks of 'tag:code'"):
        stage.harness(CONFIG.model_copy(update={"tasks": ("tag:code",)}), inputs, make_context(tmp_path / "tag"))
    with pytest.raises(UserError, match="There is no environment 'maze'"):
        stage.harness(CONFIG.model_copy(update={"environment": "maze"}), inputs, make_context(tmp_path / "maze"))


class Quiet(SearchEnvironment):
    """A user's environment: the same documents, and no tool that looks things up on the policy's behalf."""

    name = "quiet"

    def finder(self, question: str) -> None:
        return None


def test_a_users_environment_is_named_by_its_class(tmp_path: Path, inputs: Mapping[str, Artifact]) -> None:
    config = CONFIG.model_copy(update={"environment": "tests.agents.test_stage:Quiet"})
    ctx = make_context(tmp_path / "run")
    stage.harness(config, inputs, ctx)
    assert read_harness(ctx.out / "harness.json")[1] == "tests.agents.test_stage:Quiet"
    assert read_json(ctx.out / "audit.json")["dev"]["environment"] == "quiet"
