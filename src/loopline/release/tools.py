"""Tool stability: how often a candidate's calls are malformed, and how often every attempt at a task succeeds.

The candidate runs inside the harness it would be released with, over tasks tagged `tools` and their environment.
Not covered: tools that change state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness
from loopline.environments.environment import Environment
from loopline.evaluation.statistics import mean_interval
from loopline.inference.engine import Engine, Sampling
from loopline.inference.trajectory import Trajectory
from loopline.release.config import ToolTrial
from loopline.tasks.task import Task


def tool_stability(
    engine: Engine,
    harness: HarnessConfig,
    environment: Environment,
    tasks: Sequence[Task],
    trial: ToolTrial,
    context: int,
    seed: int,
) -> dict[str, Any]:
    """Success with interval, pass^k, and malformed calls per call made; `context` is the model's longest sequence."""
    chosen = list(tasks)[: trial.tasks]
    sampling = Sampling(
        max_new_tokens=trial.max_new_tokens,
        temperature=trial.temperature,
        n=trial.attempts,
        seed=seed,
    )
    runs = Harness(harness.within(context, trial.max_new_tokens)).run(engine, environment, chosen, sampling)
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
