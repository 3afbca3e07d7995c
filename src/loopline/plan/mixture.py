"""Loop B: from what the base is weak at to the mixture of its next pretraining.

    after, reasons = remix(config, weights, train_tokens, bits, scores, tokens)

Each source's excess (how far its bits per byte lie above a target or above the mean, plus how far the task sets it
covers lie below the mean) moves its weight by exp(strength * excess): the multiplicative update of DoReMi (Xie et al.
2023, arXiv:2305.10429) taken once per pretraining. Bounds keep every change small and no source over-repeated.
Not covered: mixture laws fitted on many small runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from loopline.base.errors import UserError
from loopline.plan.config import RemixConfig


def remix(
    config: RemixConfig,
    weights: Mapping[str, float],
    train_tokens: Mapping[str, int],
    bits: Mapping[str, float],
    scores: Mapping[str, float],
    tokens: int,
) -> tuple[dict[str, float], list[str]]:
    """(new weights summing to one, one sentence per source).

    `weights` sum to one; `bits` are bits per byte by source, `scores` mean scores by task set or `tag:<tag>`. Raises
    `UserError` when no evaluation covers any source, or when the bounds leave no mixture.
    """
    excess, reasons = excesses(config, sorted(weights), bits, scores)
    wanted, low, high = {}, {}, {}
    for source, weight in sorted(weights.items()):
        wanted[source] = weight * math.exp(config.strength * excess[source])
        cap = config.max_epochs * train_tokens[source] / tokens
        high[source] = min(weight * config.max_factor, cap, 1.0)
        low[source] = min(high[source], max(weight / config.max_factor, min(config.min_weight, weight)))
        if high[source] == cap:
            reasons[source] += f"; capped at {config.max_epochs:g} epochs"
    if sum(high.values()) < 1 - 1e-9:
        raise UserError(
            f"The data holds too little for {tokens:,} tokens: at {config.max_epochs:g} epochs and a change of at most "
            f"{config.max_factor:g}x per source the weights reach only {sum(high.values()):.2f}",
            "lower tokens, add data, or raise max_epochs or max_factor",
        )
    if sum(low.values()) > 1 + 1e-9:
        raise UserError(f"min_weight ({config.min_weight}) leaves no mixture", "lower min_weight")
    after = scale_within(wanted, low, high)
    sentences = [
        f"{source}: {weights[source]:.3f} -> {after[source]:.3f} ({reasons[source]})" for source in sorted(weights)
    ]
    return after, sentences


def excesses(
    config: RemixConfig, sources: Sequence[str], bits: Mapping[str, float], scores: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """How weak each source is (0 is average), and why.

    Raises `UserError` when nothing was measured, or `covers` names a source or task set that is not there.
    """
    for source, names in config.covers.items():
        unknown = [name for name in names if name not in scores]
        if source not in sources or unknown:
            what = f"the task set {unknown[0]!r}, which was not evaluated" if unknown else "which the data has not"
            known = ", ".join(sorted(scores)) if unknown else ", ".join(sources)
            raise UserError(f"covers names {source!r}: {what}", f"use one of: {known or 'none'}")
    bits = {source: bits[source] for source in sources if source in bits}
    covered = {
        source: [name for name in [source, *config.covers.get(source, [])] if name in scores] for source in sources
    }
    if not bits and not any(covered.values()):
        raise UserError(
            "The evaluations say nothing about any source of the data",
            "evaluate bits_per_byte on the data's held-out shards, or set covers {source: [task set]}",
        )
    mean_bits = fmean(bits.values()) if bits else 0.0
    named = {name for names in covered.values() for name in names}
    mean_score = fmean(scores[name] for name in sorted(named)) if named else 0.0
    excess, reasons = {}, {}
    for source in sources:
        parts, why = [], []
        if source in bits:
            target = config.targets.get(source, mean_bits)
            parts.append((bits[source] - target) / max(target, 1e-9))
            against = "its target" if source in config.targets else "the mean"
            why.append(f"{bits[source]:.3f} bits per byte against {against} of {target:.3f}")
        if covered[source]:
            score = fmean(scores[name] for name in covered[source])
            parts.append(mean_score - score)
            why.append(f"{', '.join(covered[source])} at {score:.3f} against the mean of {mean_score:.3f}")
        excess[source] = sum(parts)
        reasons[source] = "; ".join(why) or "not measured, kept in proportion"
    return excess, reasons


def scale_within(wanted: Mapping[str, float], low: Mapping[str, float], high: Mapping[str, float]) -> dict[str, float]:
    """`wanted` times one factor, clipped to [low, high], so that the sum is one; needs sum(low) <= 1 <= sum(high)."""

    def clipped(factor: float) -> dict[str, float]:
        return {name: min(high[name], max(low[name], factor * value)) for name, value in wanted.items()}

    start, end = 0.0, 1.0
    while sum(clipped(end).values()) < 1 - 1e-12 and end < 1e12:
        end *= 2
    for _ in range(200):
        middle = (start + end) / 2
        if sum(clipped(middle).values()) < 1:
            start = middle
        else:
            end = middle
    return {name: round(value, 6) for name, value in clipped(end).items()}
