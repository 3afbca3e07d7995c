"""Curves of the stages that train or search: what each step logged, and the charts drawn from it.

    curves(run)["grpo"]["series"]["reward"]

Curves live in the artifacts' log folder, since they hold measured speeds; a stage still at work shows what it has so
far. Not covered: drawing (see `report.charts`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.report.run import Run

Curve = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One panel: which series of which stages it shows."""

    title: str
    lines: Sequence[tuple[str, str, str]]
    """(stage, series, label)."""
    unit: str = ""


LOSSES = (
    Chart("Pretraining: loss", [("pretrain", "loss", "loss")], "nats per token"),
    Chart("Cold-start fine-tuning: loss", [("sft", "loss", "loss")], "nats per token"),
    Chart("Rejection-sampling fine-tuning: loss", [("rft", "loss", "loss")], "nats per token"),
    Chart("Alignment: loss", [("align", "loss", "DPO loss")]),
    Chart("Alignment: pairs told apart", [("align", "accuracy", "share of pairs")], "share"),
    Chart("Student's base: loss", [("student_base", "loss", "loss")], "nats per token"),
    Chart(
        "Student: loss",
        [("student", "loss", "with traces"), ("student_plain", "loss", "without traces")],
        "nats per token",
    ),
    Chart("Retraining on traffic: loss", [("retrain", "loss", "loss")], "nats per token"),
    Chart(
        "Next pretraining: loss",
        [("pretrain_next", "loss", "new mixture"), ("pretrain_control", "loss", "old mixture")],
        "nats per token",
    ),
)
RL = (
    Chart("Reward", [("grpo", "reward", "mean reward")]),
    Chart(
        "Groups",
        [
            ("grpo", "rollout/solved_share", "all samples right"),
            ("grpo", "rollout/failed_share", "all samples wrong"),
            ("grpo", "rollout/zero_signal_share", "no signal"),
        ],
        "share of groups",
    ),
    Chart("Entropy", [("grpo", "entropy", "entropy")], "nats per sampled token"),
    Chart("Answer length", [("grpo", "rollout/length", "mean length")], "tokens"),
    Chart(
        "Answers",
        [("grpo", "rollout/thinking_share", "with thinking"), ("grpo", "rollout/truncated_share", "cut off")],
        "share of samples",
    ),
    Chart("Loss", [("grpo", "loss", "loss")]),
)


def curves(run: Run) -> dict[str, Curve]:
    """Stage -> {"finished", "steps": [...], "series": {name: [number or None, one per step]}}."""
    found = {}
    for row in run.rows:
        file = run.log(row.name)
        if file is None:
            continue
        lines = _lines(file)
        if lines:
            found[row.name] = {"finished": row.name in run.artifacts, **_columns(lines)}
    return found


def panels(found: Mapping[str, Curve], charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """The charts that have something to show: {"title", "unit", "lines": [{"label", "steps", "values"}]}."""
    out = []
    for chart in charts:
        lines = [
            {
                "label": label if found[stage]["finished"] else f"{label} (so far)",
                "steps": found[stage]["steps"],
                "values": found[stage]["series"][series],
            }
            for stage, series, label in chart.lines
            if series in found.get(stage, {}).get("series", {})
        ]
        if lines:
            out.append({"title": chart.title, "unit": chart.unit, "lines": lines})
    return out


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = sorted({name for line in lines for name in line if name != "step"})
    return {
        "steps": [line["step"] for line in lines],
        "series": {name: [line.get(name) for line in lines] for name in names},
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a log. One torn by a crash, or being written at this moment, is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
