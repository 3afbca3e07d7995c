"""Tool stability: how often a candidate's calls are malformed, and how often every attempt at a task succeeds.

The candidate runs inside the harness it would be released with, over held-out lookup tasks and their documents.
Not covered: tools that change state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness
from loopline.base.files import read_json
from loopline.environments.lookup import LookupEnvironment
from loopline.evaluation.statistics import mean_interval
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine, Sampling
from loopline.inference.trajectory import Trajectory
from loopline.release.config import ToolTrial
from loopline.tasks.task import Task


def load_harness(path: Path) -> HarnessConfig:
    """The harness of a harness.json: its fields, plain or under `config`."""
    value = read_json(path)
    fields = value.get("config", value)
    return HarnessConfig.model_validate({name: fields[name] for name in HarnessConfig.model_fields if name in fields})


def tool_stability(
    engine: Engine,
    harness: HarnessConfig,
    tasks: Sequence[Task],
    documents: Path,
    graders: GraderSet,
    trial: ToolTrial,
    context: int,
    seed: int,
) -> dict[str, Any]:
    """Success with interval, pass^k, and malformed calls per call made.

    `documents` is a tasks artifact's folder, `context` the model's longest sequence in tokens.
    """
    environment = LookupEnvironment.from_tasks(documents, graders, part="heldout")
    harness = harness.model_copy(update={"max_context_tokens": min(harness.max_context_tokens, context - 1)})
    chosen = list(tasks)[: trial.tasks]
    sampling = Sampling(
        max_new_tokens=trial.max_new_tokens,
        temperature=trial.temperature,
        n=trial.attempts,
        seed=seed,
    )
    runs = Harness(harness).run(engine, environment, chosen, sampling)
    owners = [task for task in chosen for _ in range(trial.attempts)]
    grades = environment.grade(owners, runs)
    return summarize(runs, [grade.score for grade in grades], trial.attempts)


def summarize(runs: Sequence[Trajectory], results: Sequence[float | None], attempts: int) -> dict[str, Any]:
    """Figures of `attempts` runs per task, tasks one after the other."""
    malformed = sum(run.flags.count("malformed_call") for run in runs)
    # A call that was read ran, or was refused by name; one that could not be read is only flagged.
    made = sum(len([call for call in run.calls if call["caller"] == "policy"]) for run in runs)
    repaired = sum(run.flags.count("repaired_call") for run in runs)
    total = made + malformed - repaired
    groups = [results[start : start + attempts] for start in range(0, len(results), attempts)]
    graded = [group for group in groups if all(score is not None for score in group)]
    success = mean_interval(list(results))
    return {
        "n": len(groups),
        "attempts": attempts,
        "success": {"value": success.value, "low": success.low, "high": success.high, "n": success.n},
        "pass_all": fmean([float(all(score == 1 for score in group)) for group in graded]) if graded else None,
        "calls": total,
        "malformed_rate": malformed / total if total else 0.0,
        "unknown_tools": sum(run.flags.count("unknown_tool") for run in runs),
        "repeated_calls": sum(run.flags.count("repeated_call") for run in runs),
        "turns": fmean([float(run.turns) for run in runs]),
    }


def tool_metrics(tools: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures the objective may weigh."""
    if tools is None:
        return {}
    found = {"tool_success": tools["success"]["value"], "tool_form": 1 - tools["malformed_rate"]}
    if tools["pass_all"] is not None:
        found["tool_stability"] = tools["pass_all"]
    return found
