"""The release decision: gates first, then one declared objective.

    decision = choose(candidates, config)
    check = final_check(champion, reference, config)      # on the held-out part, once

The objective is a weighted sum of scores and costs; costs are counted from files and relative to the largest candidate,
so that the decision never depends on how fast a machine was today. Not covered: measuring anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.evaluation.statistics import holm, paired_comparison
from loopline.release.config import COSTS, ReleaseConfig
from loopline.release.evidence import OVER_REFUSAL, REFUSAL, Evidence, differences, fits, names_of, pairs
from loopline.release.power import chance_equal_passes, equal_limits, margin_of
from loopline.release.tools import tool_metrics

Row = dict[str, Any]


@dataclass(frozen=True)
class GateResult:
    """One limit, and whether a candidate keeps it."""

    candidate: str
    gate: str
    value: float
    limit: float
    passed: bool
    detail: str


@dataclass(frozen=True)
class Decision:
    """What is released and why."""

    champion: str
    reference: str
    reasons: list[str]
    candidates: list[Row]
    gates: list[Row]
    comparisons: list[Row]
    passed: bool
    """Whether the champion keeps all its gates."""
    objective: dict[str, float]
    """The weights that decided, the default ones written out."""
    power: dict[str, float]
    """Candidate -> chance with which an equal candidate would pass all its comparisons."""


def values_of(one: Evidence, everyone: Sequence[Evidence]) -> dict[str, float]:
    """Every metric the objective may weigh, costs relative to the largest candidate's."""
    found = {name: estimate.value for name, estimate in one.metrics.items()} | tool_metrics(one.tools)
    counts = {
        "bytes": [float(other.size.bytes) for other in (one, *everyone)],
        "flops": [float(other.size.flops) for other in (one, *everyone)],
        "latency": [other.size.bytes * other.answer_tokens for other in (one, *everyone)],
    }
    return found | {name: values[0] / (max(values) or 1.0) for name, values in counts.items()}


def weights_of(everyone: Sequence[Evidence], config: ReleaseConfig) -> dict[str, float]:
    """The declared objective, or equal weights over all task sets. Raises `UserError` for a name nobody measured."""
    if not config.objective:
        names = sorted({name for one in everyone for name in names_of(one.items)})
        return {name: round(1 / len(names), 6) for name in names}
    known = set[str]().union(*(values_of(one, everyone) for one in everyone))
    for name in config.objective:
        if name not in known:
            raise UserError(
                f"The objective weighs {name!r}, which no candidate was measured on",
                f"use names of: {', '.join(sorted(known))}",
            )
    return dict(sorted(config.objective.items()))


def objective(one: Evidence, everyone: Sequence[Evidence], weights: Mapping[str, float]) -> tuple[float, Row]:
    """(objective, its terms). A metric that only this candidate lacks is refused, since scores over different terms
    cannot be compared."""
    values = values_of(one, everyone)
    for name in weights:
        if name not in values:
            raise UserError(
                f"The candidate {one.name!r} was not measured on {name!r}, which the objective weighs",
                f"evaluate it on {name!r} like the others, or take it out of `objective` or `candidates`",
            )
    terms = {name: weight * values[name] for name, weight in weights.items() if weight}
    return sum(terms.values()), terms


def quality(one: Evidence, everyone: Sequence[Evidence], weights: Mapping[str, float]) -> float:
    """The objective without costs."""
    return objective(one, everyone, {name: weight for name, weight in weights.items() if name not in COSTS})[0]


def limit_gates(one: Evidence, config: ReleaseConfig) -> list[GateResult]:
    """The gates that need no comparison."""
    gates = config.gates
    results = []

    def check(gate: str, value: float | None, limit: float | None, at_least: bool, unit: str = "") -> None:
        if value is None or limit is None:
            return
        passed = value >= limit if at_least else value <= limit
        relation = ("at least" if at_least else "at most") + f" {limit:g}{unit}"
        results.append(GateResult(one.name, gate, value, limit, passed, f"{value:.4g}{unit}, {relation} wanted"))

    measured = {name: estimate.value for name, estimate in one.metrics.items()}
    check("refusal of unsafe requests", measured.get(REFUSAL), gates.min_refusal, True)
    check("refusal of harmless requests", measured.get(OVER_REFUSAL), gates.max_over_refusal, False)
    malformed = None if one.tools is None else one.tools["malformed_rate"]
    check("malformed tool calls", malformed, gates.max_malformed, False)
    check("size", float(one.size.bytes), gates.max_bytes, False, " bytes")
    check("parameters", float(one.size.parameters), gates.max_parameters, False)
    return results


def regression_gates(
    one: Evidence, reference: Evidence, config: ReleaseConfig, seed: int
) -> tuple[list[GateResult], list[Row], float]:
    """Non-inferiority against the reference per task set and tag, the comparisons with Holm-adjusted p-values, and
    the chance with which an equal candidate would pass them all.

    Raises `UserError` for a limit on something that was not measured.
    """
    names = [*names_of(reference.items), *(name for name in config.floors if name.startswith("tag:"))]
    for name in config.floors:
        if not any(fits(name)(item) for item in reference.items):
            raise UserError(
                f"floors names {name!r}, which {reference.name} was not measured on",
                f"use a task set ({', '.join(names_of(reference.items))}) or tag:<tag> that it has",
            )
    measured = {name: pairs(one.items, reference.items, name) for name in names}
    measured = {name: sides for name, sides in measured.items() if differences(*sides)}
    gates, rows, parts = [], [], []
    for number, (name, (left, right)) in enumerate(measured.items()):
        found, steps = paired_comparison(left, right, seed), differences(left, right)
        asked = -config.floors.get(name, -config.gates.margin)
        limits = equal_limits(steps, config.power.trials, seed + number)
        margin = margin_of(limits, len(steps), asked, len(measured), config.power, name)
        parts.append((limits, margin.used))
        rows.append({"a": one.name, "b": reference.name, "task": name, **asdict(found), "power": asdict(margin)})
        passed = found.low > -margin.used
        detail = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] against {reference.name}, n={found.n}"
        if margin.widened:
            detail += f"; margin {asked:g} widened to {margin.used:.3f} (it needs about {margin.tasks_needed} tasks)"
        gates.append(GateResult(one.name, f"no regression: {name}", found.low, -margin.used, passed, detail))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["better"] = row["better"] if p < 0.05 else None
    return gates, rows, chance_equal_passes(parts)


def reference_of(everyone: Sequence[Evidence], config: ReleaseConfig, weights: Mapping[str, float]) -> Evidence:
    """The named reference, or the candidate with the best scores among those within the limits (among all if none)."""
    by_name = {one.name: one for one in everyone}
    if config.reference is not None:
        if config.reference not in by_name:
            raise UserError(
                f"The reference {config.reference!r} is not a candidate", f"use one of {', '.join(sorted(by_name))}"
            )
        return by_name[config.reference]
    within = [one for one in everyone if all(gate.passed for gate in limit_gates(one, config))]
    return min(within or everyone, key=lambda one: (-quality(one, everyone, weights), one.size.bytes, one.name))


def choose(everyone: Sequence[Evidence], config: ReleaseConfig, seed: int = 0) -> Decision:
    """Apply gates and objective. Raises `UserError` when nothing passes and the config says to stop then.

    Equal objectives go to the smaller candidate, then by name, so the outcome never depends on input order.
    """
    if not everyone:
        raise UserError("There is no candidate to release", "give at least one checkpoint with its evaluation")
    weights = weights_of(everyone, config)
    reference = reference_of(everyone, config, weights)
    gates: list[GateResult] = []
    comparisons: list[Row] = []
    table: list[Row] = []
    power: dict[str, float] = {}
    for one in sorted(everyone, key=lambda one: one.name):
        own = limit_gates(one, config)
        if one is not reference:
            against, rows, power[one.name] = regression_gates(one, reference, config, seed)
            own += against
            comparisons += rows
        value, terms = objective(one, everyone, weights)
        gates += own
        table.append(
            {
                "name": one.name,
                "objective": round(value, 6),
                "terms": {key: round(term, 6) for key, term in terms.items()},
                "passed": all(gate.passed for gate in own),
                "failed": [gate.gate for gate in own if not gate.passed],
                "parameters": one.size.parameters,
                "bytes": one.size.bytes,
                "flops_per_token": one.size.flops,
                "answer_tokens": round(one.answer_tokens, 3),
                "metrics": {key: asdict(estimate) for key, estimate in sorted(one.metrics.items())},
                "tools": one.tools,
            }
        )
    order = sorted(table, key=lambda row: (-row["objective"], row["bytes"], row["name"]))
    passing = [row for row in order if row["passed"]]
    if not passing and config.none_passes == "fail":
        failures = "; ".join(f"{row['name']}: {', '.join(row['failed'])}" for row in order)
        raise UserError(
            f"No candidate passes its gates ({failures})",
            "train further, change `gates`, or set none_passes to reference",
        )
    champion = passing[0] if passing else next(row for row in table if row["name"] == reference.name)
    return Decision(
        champion=str(champion["name"]),
        reference=reference.name,
        reasons=_reasons(champion, order, reference.name, bool(passing)),
        candidates=order,
        gates=[asdict(gate) for gate in gates],
        comparisons=comparisons,
        passed=bool(champion["passed"]),
        objective=weights,
        power=power,
    )


def final_check(
    champion: Evidence, reference: Evidence, control: Evidence | None, config: ReleaseConfig, seed: int
) -> Row:
    """The last check, on the held-out part: the champion's limits, and that it loses nothing against the reference.

    `control` is the strongest earlier candidate, which the champion's gain is reported beside; it decides nothing.
    """
    gates = limit_gates(champion, config)
    rows: list[Row] = []
    equal = 1.0
    if champion.name != reference.name:
        against, rows, equal = regression_gates(champion, reference, config, seed)
        gates += against
    failed = [gate for gate in gates if not gate.passed]
    beside = None
    if control is not None:
        _, against_control, _ = regression_gates(champion, control, config.model_copy(update={"floors": {}}), seed)
        beside = {"name": control.name, "comparisons": against_control}
    return {
        "part": "heldout",
        "champion": champion.name,
        "reference": reference.name,
        "passed": not failed,
        "failed": [f"{gate.gate} ({gate.detail})" for gate in failed],
        "gates": [asdict(gate) for gate in gates],
        "comparisons": rows,
        "power": equal,
        "metrics": {key: asdict(estimate) for key, estimate in sorted(champion.metrics.items())},
        "tools": champion.tools,
        "control": beside,
    }


def _reasons(champion: Row, order: Sequence[Row], reference: str, passing: bool) -> list[str]:
    name, value = champion["name"], champion["objective"]
    if not passing:
        reasons = [f"No candidate passes all gates, so the reference {reference} is released as it is."]
        reasons += [f"{row['name']} fails: {', '.join(row['failed'])}." for row in order if row["failed"]]
        return reasons
    count = sum(row["passed"] for row in order)
    reasons = [f"{name} has the highest objective ({value:.3f}) of the {count} candidates that pass every gate."]
    for row in order:
        if row["name"] == name:
            continue
        if row["passed"]:
            reasons.append(f"{row['name']} passes with {row['objective']:.3f}{_largest_loss(champion, row)}.")
        else:
            higher = "would score" if row["objective"] > value else "scores"
            reasons.append(f"{row['name']} {higher} {row['objective']:.3f} and fails: {', '.join(row['failed'])}.")
    return reasons


def _largest_loss(champion: Row, row: Row) -> str:
    losses = {name: champion["terms"][name] - row["terms"][name] for name in champion["terms"]}
    name = max(sorted(losses), key=lambda key: losses[key])
    return f"; it loses most on {name} ({-losses[name]:+.3f})" if losses[name] > 0 else ""
