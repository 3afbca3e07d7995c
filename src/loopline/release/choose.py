"""The release decision: gates first, then one declared objective.

    decision = choose(candidates, config)

Objective = sum of weight * metric - cost of bytes - cost of FLOPs, both relative to the largest candidate, so that the
decision depends on counts and never on how fast a machine was today. Not covered: measuring anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.evaluation.statistics import holm
from loopline.release.config import ReleaseConfig
from loopline.release.evidence import Evidence, compare, sets_of
from loopline.release.tools import tool_metrics


@dataclass(frozen=True)
class GateResult:
    """One limit, and whether a candidate keeps it. `value` None means that it could not be measured."""

    candidate: str
    gate: str
    value: float | None
    limit: float
    passed: bool
    detail: str


@dataclass(frozen=True)
class Decision:
    """What is released and why."""

    champion: str
    reference: str
    reasons: list[str]
    candidates: list[dict[str, Any]]
    gates: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    passed: bool
    """Whether the champion keeps all its gates."""


def metric_values(one: Evidence) -> dict[str, float]:
    """Every metric the objective may weigh."""
    return {name: estimate.value for name, estimate in one.metrics.items()} | tool_metrics(one.tools)


def objective(one: Evidence, everyone: Sequence[Evidence], config: ReleaseConfig) -> tuple[float, dict[str, float]]:
    """(objective, its terms). A weighed metric that no candidate has is left out; one that only this candidate lacks is
    refused, since scores over different terms cannot be compared."""
    values = metric_values(one)
    known = set[str]().union(*(metric_values(other) for other in everyone))
    terms: dict[str, float] = {}
    for name, weight in sorted(config.weights.items()):
        if weight == 0 or name not in known:
            continue
        if name not in values:
            raise UserError(
                f"The candidate {one.name!r} was not measured on {name!r}, which the objective weighs",
                f"evaluate it on {name!r} like the others, or take it out of `weights`",
            )
        terms[name] = weight * values[name]
    largest_bytes = max(other.size.bytes for other in everyone)
    largest_flops = max(other.size.flops for other in everyone)
    terms["cost: bytes"] = -config.cost.get("bytes", 0.0) * one.size.bytes / largest_bytes
    terms["cost: flops"] = -config.cost.get("flops", 0.0) * one.size.flops / largest_flops
    return sum(terms.values()), terms


def limit_gates(one: Evidence, config: ReleaseConfig) -> list[GateResult]:
    """The gates that need no comparison."""
    gates = config.gates
    results = []

    def check(gate: str, value: float | None, limit: float, at_least: bool, unit: str = "") -> None:
        if value is None:
            return
        passed = value >= limit if at_least else value <= limit
        relation = ("at least" if at_least else "at most") + f" {limit:g}{unit}"
        results.append(GateResult(one.name, gate, value, limit, passed, f"{value:.4g}{unit}, {relation} wanted"))

    metrics = one.metrics
    check(
        "refusal of unsafe requests",
        metrics["refusal"].value if "refusal" in metrics else None,
        gates.min_refusal,
        True,
    )
    over = metrics["over_refusal"].value if "over_refusal" in metrics else None
    check("refusal of harmless requests", over, gates.max_over_refusal, False)
    if gates.max_malformed is not None and one.tools is not None:
        check("malformed tool calls", one.tools["malformed_rate"], gates.max_malformed, False)
    if gates.max_bytes is not None:
        check("size", float(one.size.bytes), float(gates.max_bytes), False, " bytes")
    if gates.max_parameters is not None:
        check("parameters", float(one.size.parameters), float(gates.max_parameters), False)
    return results


def regression_gates(
    one: Evidence, reference: Evidence, config: ReleaseConfig, seed: int
) -> tuple[list[GateResult], list[dict[str, Any]]]:
    """Non-inferiority against the reference per task set, and the comparisons with Holm-adjusted p-values."""
    gates, rows = [], []
    for task_set in sets_of(reference.items):
        found = compare(one.items, reference.items, task_set, seed)
        if found is None:
            continue
        rows.append({"a": one.name, "b": reference.name, "task": task_set, **asdict(found)})
        passed = found.low > -config.gates.margin
        detail = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] against {reference.name}, n={found.n}"
        gates.append(
            GateResult(one.name, f"no regression: {task_set}", found.low, -config.gates.margin, passed, detail)
        )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["better"] = row["better"] if p < 0.05 else None
    return gates, rows


def choose(everyone: Sequence[Evidence], config: ReleaseConfig, seed: int = 0) -> Decision:
    """Apply gates and objective. Raises `UserError` when nothing passes and the config says to stop then.

    Equal objectives go to the smaller candidate, then by name, so the outcome never depends on input order.
    """
    if not everyone:
        raise UserError("There is no candidate to release", "give at least one checkpoint with its evaluation")
    by_name = {one.name: one for one in everyone}
    wanted = config.reference or ("align" if "align" in by_name else sorted(by_name)[0])
    if wanted not in by_name:
        raise UserError(f"The reference {wanted!r} is not a candidate", f"use one of {', '.join(sorted(by_name))}")
    reference = by_name[wanted]
    gates: list[GateResult] = []
    comparisons: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    for name in sorted(by_name):
        one = by_name[name]
        own = limit_gates(one, config)
        if one is not reference:
            against, rows = regression_gates(one, reference, config, seed)
            own += against
            comparisons += rows
        value, terms = objective(one, everyone, config)
        gates += own
        table.append(
            {
                "name": name,
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
    )


def _reasons(champion: dict[str, Any], order: Sequence[dict[str, Any]], reference: str, passing: bool) -> list[str]:
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


def _largest_loss(champion: dict[str, Any], row: dict[str, Any]) -> str:
    losses = {name: champion["terms"][name] - row["terms"][name] for name in champion["terms"]}
    name = max(sorted(losses), key=lambda key: losses[key])
    return f"; it loses most on {name} ({-losses[name]:+.3f})" if losses[name] > 0 else ""
