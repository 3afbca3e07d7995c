"""Compare evaluations item by item: which system is better, and how sure is that.

    loopline compare runs/sft:evaluate runs/grpo:evaluate [--json]
    report = compare([read_outcomes(a), read_outcomes(b)])

The first evaluation is the baseline; every other one is compared with it on the items both have, per task set and over
all of them together. Several samples of an item count as one observation, their mean. A verdict holds after Holm's
correction for every comparison of the report. Where a set has one metric in each evaluation, those two are compared
whatever they are called; where an evaluation has one task set only, so are the sets. Not covered: unpaired comparisons,
metrics of which less is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from loopline.base.errors import UserError
from loopline.evaluation.logs import Outcome, Outcomes
from loopline.evaluation.power import detectable_by_error, detectable_difference, items_needed
from loopline.evaluation.statistics import (
    ALPHA,
    Estimate,
    bootstrap,
    cluster_numbers,
    holm,
    is_binary,
    mean_interval,
    paired_comparison,
    standard_error,
)

OVERALL = "all"
"""Name of the comparison over every task set."""
EXAMPLES = 5
Verdict = Literal["better", "worse", "not significantly different"]


@dataclass(frozen=True)
class Row:
    """`system` against `baseline` on one task set."""

    system: str
    baseline: str
    task_set: str
    metric: str
    n: int
    """Items that both could be graded on."""
    clusters: int
    """Independent observations among them."""
    samples: tuple[float, float]
    """Mean samples per item, of the system and of the baseline."""
    system_mean: Estimate
    baseline_mean: Estimate
    difference: float
    """System minus baseline, with its 95% interval."""
    low: float
    high: float
    bootstrap: tuple[float, float]
    """The same interval by resampling clusters, as a check."""
    wins: int
    losses: int
    """Items on which the system scores higher, and lower."""
    test: str
    p: float
    p_holm: float
    """Adjusted for every comparison of the report."""
    detectable: float | None
    """Smallest true difference found here in 4 of 5 repetitions, at the level that all comparisons leave for one."""
    needed: int | None
    """Items at which the difference seen would be detectable; None where it is 0."""
    ungradable: int
    """Items left out because one of the two could not be graded."""
    verdict: Verdict


@dataclass(frozen=True)
class Unpaired:
    """What two evaluations do not share in one task set."""

    system: str
    baseline: str
    task_set: str
    metric: str
    only_system: int
    only_baseline: int
    other_text: int
    """Items of equal id whose text differs."""
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All comparisons with the first evaluation."""

    systems: tuple[str, ...]
    rows: tuple[Row, ...]
    unpaired: tuple[Unpaired, ...]
    notes: tuple[str, ...]
    seed: int

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """One item that both evaluations have."""

    system: float | None
    """Mean over the samples that could be graded; None when none could."""
    baseline: float | None
    samples: tuple[int, int]
    cluster: tuple[str, str]
    """Task set and cluster: equal names in two sets are two clusters."""


@dataclass(frozen=True)
class Contest:
    """All pairs of one comparison."""

    system: str
    task_set: str
    metric: str
    pairs: tuple[Pair, ...]

    @property
    def graded(self) -> list[tuple[float, float, Pair]]:
        """(score of the system, of the baseline, pair) where both could be graded."""
        return [
            (pair.system, pair.baseline, pair)
            for pair in self.pairs
            if pair.system is not None and pair.baseline is not None
        ]


def compare(evaluations: Sequence[Outcomes], metric: str | None = None, seed: int = 0) -> Report:
    """Every evaluation against the first. `metric`: one metric only, of those that have it; `seed`: of resampling.

    Raises `UserError` with fewer than two evaluations or when a pair shares no item.
    """
    if len(evaluations) < 2:
        raise UserError("There is nothing to compare with", "name two evaluations or more, the baseline first")
    names = _names([one.name for one in evaluations])
    contests: list[Contest] = []
    unpaired: list[Unpaired] = []
    for name, system in zip(names[1:], evaluations[1:], strict=True):
        found, missing = _contests(name, names[0], system, evaluations[0], metric)
        if not found:
            raise UserError(
                f"{name} and {names[0]} share no item that both could be graded on: one has "
                f"{_described(system)}, the other {_described(evaluations[0])}",
                "compare evaluations of the same task sets and metrics, with the same item ids",
            )
        contests += found
        unpaired += missing
    rows = [_row(contest, names[0], ALPHA / len(contests), seed) for contest in contests]
    adjusted = holm([row.p for row in rows])
    judged = tuple(_judged(row, p) for row, p in zip(rows, adjusted, strict=True))
    notes = tuple(f"{name}: {note}" for name, one in zip(names, evaluations, strict=True) for note in one.notes)
    return Report(tuple(names), judged, tuple(unpaired), notes, seed)


def _names(names: Sequence[str]) -> list[str]:
    """Every evaluation's name, numbered where one is given twice."""
    return [name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, start=1)]


def _described(one: Outcomes) -> str:
    sets = sorted({f"{row.task_set} ({row.metric})" for row in one.rows})
    return f"{', '.join(sets[:EXAMPLES])} with ids such as {one.rows[0].id!r}"


def _contests(
    name: str, baseline_name: str, system: Outcomes, baseline: Outcomes, metric: str | None
) -> tuple[list[Contest], list[Unpaired]]:
    """One contest per task set and metric that both have, then one over all sets per metric."""
    contests: list[Contest] = []
    unpaired: list[Unpaired] = []
    left, right = _grouped(system, metric), _grouped(baseline, metric)
    left = _alike(left, right)
    for task_set in [*right, *(name for name in left if name not in right)]:
        ours, theirs = left.get(task_set, {}), right.get(task_set, {})
        ours = _alike(ours, theirs)
        for label in [*theirs, *(label for label in ours if label not in theirs)]:
            pairs, missing = _pairs(task_set, ours.get(label, {}), theirs.get(label, {}))
            if any(missing[:3]):
                unpaired.append(Unpaired(name, baseline_name, task_set, label, *missing))
            contest = Contest(name, task_set, label, pairs)
            if contest.graded:
                contests.append(contest)
    for label in dict.fromkeys(contest.metric for contest in contests):
        same = [contest for contest in contests if contest.metric == label]
        if len(same) > 1:
            contests.append(Contest(name, OVERALL, label, tuple(pair for one in same for pair in one.pairs)))
    return contests, unpaired


Samples = dict[str, list[Outcome]]
"""Item id -> its samples."""


def _grouped(one: Outcomes, metric: str | None) -> dict[str, dict[str, Samples]]:
    """Task set -> metric -> item id -> samples, of one metric only where the evaluation has it."""
    groups: dict[str, dict[str, Samples]] = {}
    chosen = metric if any(row.metric == metric for row in one.rows) else None
    for row in one.rows:
        if chosen in (None, row.metric):
            samples = groups.setdefault(row.task_set, {}).setdefault(row.metric, {})
            samples.setdefault(row.id, []).append(row)
    return groups


T = TypeVar("T")


def _alike(left: dict[str, T], right: dict[str, T]) -> dict[str, T]:
    """`left` under the name of `right` where each has a single entry, whose names may then differ."""
    return dict(zip(right, left.values(), strict=True)) if len(left) == len(right) == 1 else left


def _pairs(
    task_set: str, left: Samples, right: Samples
) -> tuple[tuple[Pair, ...], tuple[int, int, int, tuple[str, ...]]]:
    """The items both have, in the order of their ids, and the fields of `Unpaired` for the others."""
    pairs = []
    other = []
    for key in sorted(left.keys() & right.keys()):
        a, b = left[key], right[key]
        if a[0].content and b[0].content and a[0].content != b[0].content:
            other.append(key)
            continue
        (a_mean, a_count), (b_mean, b_count) = _mean(a), _mean(b)
        cluster = b[0].cluster if b[0].cluster is not None else f"item {key}"
        pairs.append(Pair(a_mean, b_mean, (a_count, b_count), (task_set, cluster)))
    mine, theirs = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
    return tuple(pairs), (len(mine), len(theirs), len(other), tuple([*mine, *theirs, *other][:EXAMPLES]))


def _mean(samples: Sequence[Outcome]) -> tuple[float | None, int]:
    graded = [row.score for row in samples if row.score is not None]
    return (math.fsum(graded) / len(graded) if graded else None), len(graded)


def _row(contest: Contest, baseline: str, alpha: float, seed: int) -> Row:
    """One comparison, not yet corrected for the others; `alpha` is the level that they leave for it."""
    graded = contest.graded
    left, right = [a for a, _, _ in graded], [b for _, b, _ in graded]
    clusters = [pair.cluster for _, _, pair in graded]
    found = paired_comparison(left, right, seed, clusters)
    differences = np.asarray(left) - np.asarray(right)
    groups = cluster_numbers(clusters)
    error, count = standard_error(differences, groups)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    if groups is None and is_binary(np.asarray(left + right)):
        test = "McNemar, exact"
        detectable = detectable_difference(wins, losses, found.n, alpha)
    else:
        test = "sign flips" if groups is None else "sign flips by cluster"
        detectable = detectable_by_error(error, alpha)
    return Row(
        system=contest.system,
        baseline=baseline,
        task_set=contest.task_set,
        metric=contest.metric,
        n=found.n,
        clusters=count,
        samples=(
            sum(pair.samples[0] for _, _, pair in graded) / found.n,
            sum(pair.samples[1] for _, _, pair in graded) / found.n,
        ),
        system_mean=mean_interval(left, seed, clusters),
        baseline_mean=mean_interval(right, seed, clusters),
        difference=found.difference,
        low=found.low,
        high=found.high,
        bootstrap=bootstrap(differences, seed, groups=groups),
        wins=wins,
        losses=losses,
        test=test,
        p=found.p,
        p_holm=found.p,
        detectable=detectable,
        needed=items_needed(found.difference, detectable, found.n) if found.difference and detectable else None,
        ungradable=len(contest.pairs) - len(graded),
        verdict="not significantly different",
    )


def _judged(row: Row, p_holm: float) -> Row:
    verdict: Verdict = "not significantly different"
    if p_holm < ALPHA and row.difference != 0:
        verdict = "better" if row.difference > 0 else "worse"
    return replace(row, p_holm=p_holm, verdict=verdict)


def print_report(report: Report) -> None:
    """The report as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold")
    columns = ("system", "tasks", "n", "baseline", "system's mean", "difference", "p", "detectable", "verdict")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in report.rows:
        size = f"{row.n}" if row.samples == (1, 1) else f"{row.n} x {row.samples[0]:.3g}/{row.samples[1]:.3g}"
        table.add_row(
            row.system,
            f"{row.task_set} ({row.metric})",
            size if row.clusters == row.n else f"{size} in {row.clusters} clusters",
            _estimate(row.baseline_mean),
            _estimate(row.system_mean),
            f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
            f"{row.p_holm:.2g}",
            "-" if row.detectable is None else f"{row.detectable:.3f}",
            row.verdict,
        )
    console.print(f"Baseline: {report.systems[0]}")
    console.print(table)
    tests = ", ".join(dict.fromkeys(row.test for row in report.rows))
    console.print(
        f"n: items, x samples of system/baseline; 95% intervals; p: {tests}, "
        f"adjusted for {len(report.rows)} comparisons (Holm); detectable: true difference found in 4 of 5 repetitions",
        soft_wrap=True,
    )
    for gap in report.unpaired:
        parts = (
            f"{gap.only_system} only in {gap.system}" if gap.only_system else "",
            f"{gap.only_baseline} only in {gap.baseline}" if gap.only_baseline else "",
            f"{gap.other_text} of equal id but other text" if gap.other_text else "",
        )
        named = "; ".join(part for part in parts if part)
        console.print(f"Not paired in {gap.task_set} ({gap.metric}): {named}; for example {', '.join(gap.examples)}")
    for row in report.rows:
        if row.ungradable:
            console.print(f"Left out of {row.task_set} ({row.metric}): {row.ungradable} items that could not be graded")
    for note in report.notes:
        console.print(note)


def _estimate(one: Estimate) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
