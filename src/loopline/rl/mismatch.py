"""Sampler against trainer: do the log-probs reported with the samples equal a fresh forward pass of the same weights?

    mismatch = measure_mismatch(model, groups, config, samples=4)

They differ by rounding, or one of the two computes something else: another precision, temperature or mask, weights
that never arrived. Measured at the weights that sampled, so the policy's own movement does not enter. Not covered: what
to do about it (see `rl.guards.MismatchGuard` and the importance corrections of `rl.losses`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loopline.model.language_model import LanguageModel
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.examples import completion_example, score_examples
from loopline.rl.group import Group
from loopline.training.batch import Example


@dataclass(frozen=True)
class Mismatch:
    """How far sampler and trainer are apart, over `tokens` sampled tokens."""

    kl: float = 0.0
    """Mean of exp(d) - 1 - d with d = trainer - sampler, in nats: the k3 estimate of KL(sampler || trainer)."""
    largest: float = 0.0
    """Largest |d|."""
    tokens: int = 0


def compare_logprobs(sampler: Sequence[float], trainer: Sequence[float]) -> Mismatch:
    """The mismatch of two lists of log-probs of the same tokens."""
    differences = [b - a for a, b in zip(sampler, trainer, strict=True)]
    if not differences:
        return Mismatch()
    k3 = math.fsum(math.expm1(min(d, 700.0)) - d for d in differences) / len(differences)
    return Mismatch(k3, max(abs(d) for d in differences), len(differences))


def compare_examples(examples: Sequence[Example], trainer: Sequence[Sequence[float]]) -> Mismatch:
    """The mismatch of examples that carry the sampler's log-probs and the trainer's scores of them."""
    pairs = [
        (old, new)
        for example, scores in zip(examples, trainer, strict=True)
        for weight, old, new in zip(example.weights, example.extras["old_logprobs"], scores, strict=True)
        if weight
    ]
    return compare_logprobs([old for old, _ in pairs], [new for _, new in pairs])


def measure_mismatch(
    model: LanguageModel, groups: Sequence[Group], config: PolicyGradientConfig, samples: int
) -> Mismatch:
    """Score one answer of each of `samples` groups, evenly spread, with the training forward pass."""
    if not samples or not groups:
        return Mismatch()
    chosen = [groups[number * len(groups) // samples] for number in range(min(samples, len(groups)))]
    examples = []
    for number, group in enumerate(chosen):
        example = completion_example(group.prompt, group.completions[number % len(group.completions)], 0.0, config)
        if example is not None:
            examples.append(example)
    return compare_examples(examples, score_examples(model, examples, config.temperature))
