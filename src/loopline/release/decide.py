"""Champion against candidate: the decision at the end of both loops.

    decision = decide("traffic", champion, candidate, measured, config)

A comparison is of one task set on the same tasks, or of one source on the same windows of text. Nothing may be worse
than its margin (non-inferiority: a loss that lies wholly inside the margin does not block), and something must be
better after Holm's correction. What the comparisons can tell is part of the decision. Not covered: choosing among
several candidates (see `release.choose`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.evaluation.statistics import Comparison, holm, paired_comparison
from loopline.evaluation.windows import source_windows
from loopline.release.config import GateConfig, Mode
from loopline.release.evidence import Item, Part, differences, fits, names_of, pairs
from loopline.release.power import Margin, chance_equal_passes, equal_limits, margin_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One comparison in the direction in which more is better."""

    task: str
    metric: str
    found: Comparison
    differences: Sequence[float]
    asked: float
    """The non-inferiority margin that is asked for."""
    lower_is_better: bool = False

    def row(self, after: str, before: str) -> Row:
        """As it is reported: a is the candidate, the difference in the metric's own direction."""
        values = asdict(self.found)
        if self.lower_is_better:
            values |= {
                "difference": -self.found.difference,
                "low": -self.found.high,
                "high": -self.found.low,
            }
        return {"a": after, "b": before, "task": self.task, "metric": self.metric, **values}


def compare_sets(
    before: Sequence[Item], after: Sequence[Item], mode: Mode, config: GateConfig, seed: int
) -> list[Measured]:
    """Every task set both evaluations have, and the tags that `floors` names."""
    shared = sorted(set(names_of(before)) & set(names_of(after)))
    tags = [name for name in config.floors if name.startswith("tag:")]
    for name in config.floors:
        if not any(fits(name)(item) for item in before):
            raise UserError(f"floors names {name!r}, which was not measured", f"use one of: {', '.join(shared)}")
    out = []
    for name in [*shared, *tags]:
        left, right = pairs(after, before, name)
        steps = differences(left, right)
        if steps:
            asked = -config.floors.get(name, -config.margin)
            out.append(Measured(name, f"{mode} pass@1", paired_comparison(left, right, seed), steps, asked))
    return out


def compare_sources(before: Path, after: Path, part: Part, config: GateConfig, seed: int) -> list[Measured]:
    """Bits per byte of every source both evaluations have, paired over windows of held-out text.

    Windows count by their bytes, so the mean difference is exactly the difference of the two totals. Raises `UserError`
    when the windows hold different text.
    """
    windows = [source_windows(path, part) for path in (before, after)]
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
        steps = differences(left, right)
        results.append(Measured(source, "bits_per_byte", measured, steps, config.bits_margin, lower_is_better=True))
    return results


def judge(measured: Sequence[Measured], after: str, before: str, config: GateConfig, seed: int) -> Row:
    """Every comparison with its verdict: {"comparisons", "worse", "better", "power"}."""
    rows: list[Row] = []
    worse, better, parts = [], [], []
    adjusted = holm([one.found.p for one in measured])
    for number, (one, p) in enumerate(zip(measured, adjusted, strict=True)):
        limits = equal_limits(one.differences, config.power.trials, seed + number)
        margin = margin_of(limits, len(one.differences), one.asked, len(measured), config.power, one.task)
        parts.append((limits, margin.used))
        inferior = one.found.low <= -margin.used
        verdict = one.found.better if p < 0.05 else None
        found = {"margin": margin.used, "power": asdict(margin), "p_holm": p, "better": verdict, "inferior": inferior}
        rows.append(one.row(after, before) | found)
        line = _sentence(rows[-1], margin)
        if inferior:
            worse.append(line)
        elif verdict == "a":
            better.append(line)
    equal = chance_equal_passes(parts)
    return {"comparisons": rows, "worse": worse, "better": better, "power": equal}


def _sentence(row: Row, margin: Margin) -> str:
    text = f"{row['task']} ({row['metric']}): {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], "
    text += f"n={row['n']}, Holm p={row['p_holm']:.3g}; margin {margin.used:.3g}"
    if margin.widened:
        text += f" (asked {margin.asked:g}, which needs about {margin.tasks_needed} tasks)"
    return text + f", losses from {margin.detectable:.3g} are detected"


def decide(
    name: str,
    names: tuple[str, str],
    measured: Sequence[Measured],
    control: Sequence[Measured] | None,
    config: GateConfig,
    seed: int = 0,
) -> Row:
    """The decision on the development part: {"name", "before", "after", "decision", "reasons", "comparisons", ...}.

    `names` are (champion, candidate), `measured` compares the candidate with the champion, `control` with a control
    that had equal compute. Raises `UserError` when there is nothing to compare.
    """
    before, after = names
    if not measured:
        raise UserError(
            f"The evaluations of {before} and {after} share no task, so neither can be preferred",
            "evaluate both with the same task sets, mode and data",
        )
    found = judge(measured, after, before, config, seed)
    beside = None if control is None else judge(control, after, "control", config, seed)
    gained = found["better"] if beside is None else beside["better"]
    count = len(found["comparisons"])
    promote = not found["worse"] and bool((gained and found["better"]) or not config.require_gain)
    if found["worse"]:
        reasons = [f"{after} may be worse than the margin allows, so {before} stays."]
    elif promote and gained:
        reasons = [f"{after} is better on {len(found['better'])} of {count} comparisons and worse on none."]
    elif promote:
        reasons = [f"{after} is not worse on any of {count} comparisons."]
    elif found["better"]:
        reasons = [f"{after} is better than {before}, but not than its control, so {before} stays."]
    else:
        reasons = [f"{after} is not worse, but no comparison shows it to be better, so {before} stays."]
    reasons += [f"Possibly worse: {line}." for line in found["worse"]]
    reasons += [f"Better: {line}." for line in found["better"]]
    reasons.append(f"A candidate equal to {before} would pass with a chance of {found['power']:.0%}.")
    return {
        "name": name,
        "before": before,
        "after": after,
        "part": "dev",
        "decision": "promote" if promote else "keep",
        "reasons": reasons,
        "comparisons": found["comparisons"],
        "power": found["power"],
        "control": None if beside is None else {"name": "control", "comparisons": beside["comparisons"]},
        "final_check": None,
    }


def check_last(decision: Row, measured: Sequence[Measured], config: GateConfig, seed: int = 0) -> Row:
    """A promotion after its check on the held-out part: a candidate that is worse there is not promoted."""
    found = judge(measured, decision["after"], decision["before"], config, seed)
    check = {"part": "heldout", "passed": not found["worse"], "failed": found["worse"]}
    checked = {**decision, "final_check": {**check, "comparisons": found["comparisons"], "power": found["power"]}}
    if found["worse"]:
        lead = f"THE LAST CHECK FAILED: on held-out tasks {decision['after']} may be worse than the margin allows, so "
        lost = [f"Possibly worse, held out: {line}." for line in found["worse"]]
        checked |= {"decision": "keep", "reasons": [f"{lead}{decision['before']} stays.", *lost, *decision["reasons"]]}
    return checked


def checkpoint_name(evaluation: Path, fallback: str) -> str:
    """The checkpoint that an evaluation is about."""
    summary = evaluation / "summary.json"
    if not summary.exists():
        return fallback
    rows: Sequence[Mapping[str, Any]] = read_json(summary).get("evaluations", [])
    return str(rows[0]["checkpoint"]) if rows else fallback
