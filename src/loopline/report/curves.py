"""Curves of the stages that train or search: what each step logged, and the charts drawn from it.

    curves(run)["grpo"]["series"]["reward"]

Curves lie in the artifacts' log folder, since they hold measured speeds; a stage still at work shows what it has so
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


RL = {
    "Reward": ("", {"reward": "mean reward"}),
    "Groups": (
        "share of groups",
        {
            "rollout/solved_share": "all samples right",
            "rollout/failed_share": "all samples wrong",
            "rollout/zero_signal_share": "no signal",
        },
    ),
    "Entropy": ("nats per sampled token", {"entropy": "entropy"}),
    "Answer length": ("tokens", {"rollout/length": "mean length"}),
    "Answers": ("share of samples", {"rollout/thinking_share": "with thinking", "rollout/truncated_share": "cut off"}),
}
"""Title -> (unit, {series: label}) of the panels of a stage that learns from rewards."""


def loss_charts(found: Mapping[str, Curve]) -> list[Chart]:
    """One panel per stage that trains, in the order of the line; pairs of a preference stage are beside its loss."""
    charts = []
    for stage, curve in found.items():
        charts.append(Chart(f"{stage}: loss", [(stage, "loss", "loss")]))
        if "accuracy" in curve["series"]:
            charts.append(Chart(f"{stage}: pairs ranked right", [(stage, "accuracy", "share of pairs")], "share"))
    return charts


def rl_charts(found: Mapping[str, Curve]) -> list[Chart]:
    """The panels of every stage that learns from rewards."""
    return [
        Chart(f"{stage}: {title}", [(stage, series, label) for series, label in series_of.items()], unit)
        for stage, curve in found.items()
        if any(name.startswith("rollout/") for name in curve["series"])
        for title, (unit, series_of) in RL.items()
    ]


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
