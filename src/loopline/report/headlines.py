"""The few numbers at the top of the page, and the run in one sentence.

    headlines(report)     # [{"label", "value", "low", "high", "n", "unit", "verdict", "anchor"}]

Only what was measured appears: a run that stopped early has few headlines or none. Not covered: what the numbers
rest on, which the page's tables show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS = {
    ("sft", "pretrain"): "Fine-tuning",
    ("grpo", "sft"): "Reasoning RL",
    ("rft", "grpo"): "Rejection sampling",
    ("student", "student_plain"): "Teacher's traces",
    ("harness:best", "harness:first"): "Harness search",
}
"""Comparisons that earn a headline, by their sides."""


def headlines(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of the released checkpoint, then what the main steps added, each with interval and n."""
    return [*_released(report), *_steps(report)]


def _released(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    release = report["release"]
    if release is None:
        return []
    mode = release.get("objective", {}).get("mode", "sampled")
    out = []
    for row in report["evaluations"]:
        wanted = row["task"] in ("reasoning", "safety") and row["metric"] == f"{mode} pass@1"
        if row["checkpoint"] == release["champion"] and wanted and row["value"] is not None:
            numbers = {key: row[key] for key in ("value", "low", "high", "n")}
            label = f"{release['champion']}: {row['task']}"
            out.append({"label": label, "unit": "score", "detail": row["metric"], "verdict": None, **numbers})
    return sorted(out, key=lambda row: "reasoning" not in row["label"])


def _steps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    out = []
    for (a, b), label in STEPS.items():
        rows = [row for row in report["comparisons"] if (row["a"], row["b"]) == (a, b)]
        row = next((row for row in rows if row["task"] == "reasoning" and row["metric"].startswith("sampled")), None)
        # The harness is searched on one task set, so its only comparison stands for it.
        row = row or next(iter(rows if len(rows) == 1 else []), None)
        if row is not None:
            numbers = {"value": row["difference"], "low": row["low"], "high": row["high"], "n": row["n"]}
            detail = f"{row['task']}, {row['metric']}, {a} against {b}"
            verdict = {"a": "better", "b": "worse", None: "unclear"}[row["better_holm"]]
            out.append({"label": label, "unit": "difference", "detail": detail, "verdict": verdict, **numbers})
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
