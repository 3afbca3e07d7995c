"""The audit passes a sound environment and names what is wrong with an unsound one."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from loopline.base.errors import UserError
from loopline.chat.tools import ToolResult
from loopline.environments.environment import EpisodeState
from loopline.environments.search import SearchEnvironment
from loopline.evaluation.environment_audit import audit_environment, require
from loopline.grading.grade import Grade
from tests.environments import world


class FlakyTools(SearchEnvironment):
    count = itertools.count()

    def call(self, state: EpisodeState, name: str, arguments: Any) -> ToolResult:
        result = super().call(state, name, arguments)
        return ToolResult(text=f"{result.text} {next(self.count)}")


class DriftingReset(SearchEnvironment):
    count = itertools.count()

    def reset(self, task: Any) -> EpisodeState:
        return EpisodeState(task_id=task.id, world=str(next(self.count)))


class GenerousGraders(world.ExactGraders):
    def grade(self, samples: Any) -> list[Grade]:
        return [Grade(1.0) for _ in samples]


def report(environment: SearchEnvironment, path: Path) -> dict[str, Any]:
    return audit_environment(environment, world.tasks(), world.tokenizer(path))


def failed(found: dict[str, Any]) -> set[str]:
    return {probe["probe"] for probe in found["probes"] if probe["failures"]}


def test_a_sound_environment_passes(tmp_path: Path) -> None:
    found = report(world.environment(), tmp_path)
    require(found)
    assert found["passed"] and {probe["n"] for probe in found["probes"]} == {len(world.tasks())}


def test_faults_are_named(tmp_path: Path) -> None:
    flaky = report(FlakyTools(world.DOCUMENTS, world.ExactGraders()), tmp_path)
    assert {"tools_deterministic", "tools_match_recorded"} <= failed(flaky)
    drifting = report(DriftingReset(world.DOCUMENTS, world.ExactGraders()), tmp_path)
    assert {"reset_same_bytes"} <= failed(drifting)
    generous = report(world.environment(GenerousGraders()), tmp_path)
    assert failed(generous) == {"silence_scores_zero", "calls_alone_score_zero"}
    changed = [{**row, "text": row["text"].replace("7", "8")} for row in world.DOCUMENTS]
    assert failed(report(SearchEnvironment(changed, world.ExactGraders()), tmp_path)) == {"tools_match_recorded"}
    with pytest.raises(UserError, match="silence_scores_zero failed on 15 of 15 tasks"):
        require(generous)


def test_tasks_without_a_recorded_solution_cannot_be_audited(tmp_path: Path) -> None:
    bare = [task.model_copy(update={"responses": ()}) for task in world.tasks()]
    with pytest.raises(UserError, match="cannot be audited"):
        audit_environment(world.environment(), bare, world.tokenizer(tmp_path))
