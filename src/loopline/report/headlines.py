"""The few numbers at the top of the page, and the run in one sentence.

    headlines(report)     # [{"label", "value", "low", "high", "n", "unit", "verdict", "anchor"}]

Only what was measured appears: a run that stopped early has few headlines or none. Not covered: what the numbers
rest on, which the page's tables show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def headlines(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of the released checkpoint, then what every step changed, each with interval and n."""
    return [*_released(report), *_steps(report)]


def _released(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The released checkpoint on every tag, or on every task set where there are no tags."""
    release = report["release"]
    if release is None:
        return []
    mode = release.get("objective", {}).get("mode", "sampled")
    rows = [
        row
        for row in report["evaluations"]
        if row["checkpoint"] == release["champion"] and row["metric"] == f"{mode} pass@1" and row["value"] is not None
    ]
    out = []
    for row in [row for row in rows if row["task"].startswith("tag:")] or rows:
        numbers = {key: row[key] for key in ("value", "low", "high", "n")}
        label = f"{release['champion']}: {row['task'].removeprefix('tag:')}"
        out.append({"label": label, "unit": "score", "detail": row["metric"], "verdict": None, **numbers})
    return out


def _steps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every step, gains and losses alike: on the tag, or else the task set, with the most tasks, in its first mode."""
    oracles = {row["checkpoint"]: row.get("oracle") for row in (report["harness"] or {}).get("evaluations", [])}
    out = []
    for pair in dict.fromkeys((row["a"], row["b"]) for row in report["comparisons"]):
        rows = [row for row in report["comparisons"] if (row["a"], row["b"]) == pair]
        rows = [row for row in rows if row["metric"] == rows[0]["metric"]]
        row = max([row for row in rows if row["task"].startswith("tag:")] or rows, key=lambda row: row["n"])
        numbers = {"value": row["difference"], "low": row["low"], "high": row["high"], "n": row["n"]}
        detail = f"{row['task'].removeprefix('tag:')}, {row['metric']}, {row['a']} against {row['b']}"
        if oracles.get(row["a"]) is not None:
            detail += f"; ceiling {oracles[row['a']]:.0%}"
        verdict = {"a": "better", "b": "worse", None: "unclear"}[row["better_holm"]]
        out.append({"label": row["a"], "unit": "difference", "detail": detail, "verdict": verdict, **numbers})
    return out


def sentence(report: Mapping[str, Any]) -> str:
    """What became of the run, in one sentence or two."""
    run, release = report["run"], report["release"]
    troubled = [row["name"] for row in report["stages"] if row["state"] in ("failed", "interrupted", "running")]
    if run["state"] == "failed":
        errors = "".join(f" {row['name']}: {row['error']}" for row in report["stages"] if row["error"])
        return f"The run stopped at {_and(troubled)}; {run['done']} of {run['total']} stages are done.{errors}"
    if run["state"] == "interrupted":
        return (
            f"The run was cut short during {_and(troubled)}; {run['done']} of {run['total']} stages are done and the "
            "same command goes on from there."
        )
    if run["state"] == "running":
        doing = f"at {_and(troubled)}" if troubled else "between two stages"
        return f"The run is {doing}; {run['done']} of {run['total']} stages are done."
    if release is not None:
        reason = release["reasons"][0] if release["reasons"] else ""
        return f"Released: {release['champion']}. {reason}".strip()
    return f"{run['done']} of {run['total']} stages are done; nothing has been released yet."


def _and(names: list[str]) -> str:
    return " and ".join(names) if names else "no stage"
