"""Champion against candidate: the decision at the end of both loops.

    decision = decide("traffic", before_rows, after_rows, config)

Task sets are compared pairwise on the same held-out tasks, sources on the same held-out windows of text; p-values are
adjusted for the number of comparisons (Holm), and nothing may be worse than its margin. Not covered: choosing among
several candidates (see `release.choose`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.evaluation.statistics import Z95, Comparison, holm, paired_comparison
from loopline.release.config import GateConfig
from loopline.release.evidence import compare, sets_of


@dataclass(frozen=True)
class Measured:
    """One comparison in the direction in which more is better, with its non-inferiority margin."""

    task: str
    metric: str
    found: Comparison
    margin: float
    lower_is_better: bool = False

    def row(self, after: str, before: str) -> dict[str, Any]:
        """As it is reported: a is the candidate, the difference in the metric's own direction."""
        values = asdict(self.found)
        if self.lower_is_better:
            values |= {
                "difference": -self.found.difference,
                "low": -self.found.high,
                "high": -self.found.low,
            }
        return {"a": after, "b": before, "task": self.task, "metric": self.metric, "margin": self.margin, **values}


def compare_sets(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], config: GateConfig, seed: int
) -> list[Measured]:
    """Every task set both evaluations have."""
    shared = sorted(set(sets_of(before)) & set(sets_of(after)))
    found = [(task_set, compare(after, before, task_set, seed)) for task_set in shared]
    metric = f"{config.mode} pass@1"
    return [Measured(task_set, metric, result, config.margin) for task_set, result in found if result is not None]


def compare_sources(before: Path, after: Path, config: GateConfig, seed: int) -> list[Measured]:
    """Bits per byte of every source both evaluate artifacts have, paired over windows of held-out text.

    Windows count by their bytes, so the mean difference is exactly the difference of the two totals. Windows come from
    `bpb.jsonl`; where an artifact has none, the means are compared with their intervals, unpaired.
    """
    windows = [_windows(path) for path in (before, after)]
    if windows[0] and windows[1]:
        results = []
        for source in sorted({key[0] for key in windows[0]} & {key[0] for key in windows[1]}):
            keys = sorted(key for key in windows[0] if key[0] == source and key in windows[1])
            sizes = [windows[0][key][1] for key in keys]
            if sizes != [windows[1][key][1] for key in keys]:
                raise UserError(
                    f"The windows of {source!r} in {before.name} and {after.name} hold different text",
                    "evaluate both checkpoints on the same data artifact",
                )
            mean = math.fsum(sizes) / len(sizes)
            # Negated, so that more is better as everywhere else.
            left = [-windows[1][key][0] / mean for key in keys]
            right = [-windows[0][key][0] / mean for key in keys]
            measured = paired_comparison(left, right, seed)
            results.append(Measured(source, "bits_per_byte", measured, config.bits_margin, lower_is_better=True))
        return results
    values = [_values(path) for path in (before, after)]
    shared = sorted(values[0].keys() & values[1].keys())
    return [
        Measured(source, "bits_per_byte", _unpaired(values[0][source], values[1][source]), config.bits_margin, True)
        for source in shared
    ]


def decide(name: str, before: str, after: str, measured: Sequence[Measured], config: GateConfig) -> dict[str, Any]:
    """The content of decision.json. Raises `UserError` when there is nothing to compare."""
    if not measured:
        raise UserError(
            f"The evaluations of {before} and {after} share no task, so neither can be preferred",
            "evaluate both with the same task sets, mode and data",
        )
    rows = []
    gained, worse = [], []
    adjusted = holm([one.found.p for one in measured])
    for one, p in zip(measured, adjusted, strict=True):
        better = one.found.better if p < 0.05 else None
        inferior = one.found.low <= -one.margin
        rows.append(one.row(after, before) | {"p_holm": p, "better": better, "inferior": inferior})
        line = f"{one.task} ({one.metric}): {rows[-1]['difference']:+.3f} [{rows[-1]['low']:+.3f}, "
        line += f"{rows[-1]['high']:+.3f}], n={one.found.n}, Holm p={p:.3g}"
        if inferior or better == "b":
            worse.append(f"{line}; the margin is {one.margin:g}")
        elif better == "a":
            gained.append(line)
    promote = not worse and bool(gained or not config.require_gain)
    if worse:
        reasons = [f"{after} may be worse than the margin allows, so {before} stays."]
        reasons += [f"Possibly worse: {line}." for line in worse]
    elif promote and gained:
        reasons = [f"{after} is better on {len(gained)} of {len(rows)} comparisons and worse on none."]
    elif promote:
        reasons = [f"{after} is not worse on any of {len(rows)} comparisons."]
    else:
        reasons = [f"{after} is not worse, but no comparison shows it to be better, so {before} stays."]
    reasons += [f"Better: {line}." for line in gained]
    return {
        "name": name,
        "before": before,
        "after": after,
        "decision": "promote" if promote else "keep",
        "reasons": reasons,
        "comparisons": rows,
    }


def checkpoint_name(path: Path, fallback: str) -> str:
    """The checkpoint that an evaluate artifact is about."""
    summary = path / "summary.json"
    if not summary.exists():
        return fallback
    rows = read_json(summary).get("evaluations", [])
    return str(rows[0]["checkpoint"]) if rows else fallback


def _windows(path: Path) -> dict[tuple[str, int], tuple[float, int]]:
    file = path / "bpb.jsonl"
    if not file.exists():
        return {}
    return {(row["source"], row["window"]): (float(row["bits"]), int(row["bytes"])) for row in read_jsonl(file)}


def _values(path: Path) -> dict[str, Mapping[str, Any]]:
    rows = read_json(path / "summary.json")["evaluations"]
    return {str(row["task"]): row for row in rows if row["metric"] == "bits_per_byte" and row["value"] is not None}


def _unpaired(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Two means with their intervals as if from different texts: wider than the paired comparison, never narrower."""
    difference = float(before["value"]) - float(after["value"])
    error = math.hypot(*((row["high"] - row["low"]) / (2 * Z95) for row in (before, after)))
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else 1.0
    better = None if p >= 0.05 else ("a" if difference > 0 else "b")
    n = min(int(before["n"]), int(after["n"]))
    return Comparison(n, difference, difference - Z95 * error, difference + Z95 * error, p, better)  # type: ignore[arg-type]
