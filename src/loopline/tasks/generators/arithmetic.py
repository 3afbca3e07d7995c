"""Arithmetic: chains of additions and subtractions such as `12+5-3=?`, worked step by step.

Two-term chains are the addition table, always in training. Chains of the other parts have three terms or more, are
recognised whatever the order of their operands, and are not the beginning of any training chain either.
"""

from __future__ import annotations

import random

from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import Instance, fill, part_of, reply

Terms = list[int]  # signed operands; the first is not negative


def draw_terms(rng: random.Random, signs: str, config: GeneratorSettings, low: int = 1) -> Terms | None:
    """Signed operands for signs such as "+-", or None when a result would leave 0..max_result."""
    terms = [rng.randint(low, config.max_value)]
    total = terms[0]
    for sign in signs:
        room = config.max_result - total if sign == "+" else total
        if room < low:
            return None
        value = rng.randint(low, min(config.max_value, room))
        terms.append(value if sign == "+" else -value)
        total += terms[-1]
    return terms


def calculation_key(terms: Terms) -> str:
    """Key of a calculation: its signed operands in sorted order, shared by every task set that computes."""
    return "calculation|" + ",".join(map(str, sorted(terms)))


def calculation_part(terms: Terms, config: GeneratorSettings) -> str:
    """The part of a calculation. Two-term calculations are always for training."""
    return part_of(calculation_key(terms), config.heldout_percent) if len(terms) > 2 else "train"


def for_training(terms: Terms, config: GeneratorSettings) -> bool:
    """Whether neither the chain nor a beginning of it belongs to another part than "train"."""
    return all(calculation_part(terms[:end], config) == "train" for end in range(3, len(terms) + 1))


def belongs(terms: Terms, part: str, config: GeneratorSettings) -> bool:
    """Whether the calculation may be in the part."""
    return for_training(terms, config) if part == "train" else calculation_part(terms, config) == part


def steps_of(terms: Terms) -> list[str]:
    """The worked steps, for example ["12+5=17", "17-3=14"]."""
    total, steps = terms[0], []
    for term in terms[1:]:
        steps.append(f"{total}{term:+d}={total + term}")
        total += term
    return steps


def written(terms: Terms) -> str:
    """The chain as text, for example `12+5-3`."""
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def draw(rng: random.Random, part: str, config: GeneratorSettings) -> Instance | None:
    """One instance of the part, or None when this sample falls into another."""
    count = rng.randint(2 if part == "train" else 3, config.max_terms)
    terms = draw_terms(rng, "".join(rng.choice("+-") for _ in range(count - 1)), config)
    if terms is None:
        return None
    if not belongs(terms, part, config):
        return None
    answer = str(sum(terms))
    return Instance(
        key=calculation_key(terms),
        template=f"{count} terms",
        prompt=f"{written(terms)}=?",
        answer=answer,
        responses=[reply("think", f"<think>{';'.join(steps_of(terms))}</think>{answer}"), reply("direct", answer)],
    )


def document(rng: random.Random, config: GeneratorSettings) -> tuple[str, str]:
    """(title, text) of one page of facts and worked chains, without calculations of other parts."""

    def line() -> str:
        while True:
            count = rng.choice((2, 2, 2, 3, config.max_terms))
            terms = draw_terms(rng, "".join(rng.choice("+-") for _ in range(count - 1)), config)
            if terms is None or not for_training(terms, config):
                continue
            steps = steps_of(terms)
            if count == 2:
                return steps[0]
            return f"{written(terms)}={sum(terms)}" if rng.random() < 0.3 else f"{written(terms)}: {';'.join(steps)}"

    return "sums", fill(line, rng.randint(120, 360))
