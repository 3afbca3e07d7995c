"""Ordering: who is tallest, youngest, fastest, from pairwise comparisons in shuffled order.

The key is the order of the people, whatever the relation, the direction of each sentence and their sequence.
"""

from __future__ import annotations

import random

from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import Instance, fill, part_of, reply
from loopline.tasks.generators.word_problem import NAMES

# relation: (more, less, most, least)
RELATIONS = {
    "height": ("taller", "shorter", "tallest", "shortest"),
    "age": ("older", "younger", "oldest", "youngest"),
    "speed": ("faster", "slower", "fastest", "slowest"),
    "weight": ("heavier", "lighter", "heaviest", "lightest"),
}


def order_key(order: list[str]) -> str:
    """Key of an ordering: the people from most to least."""
    return "ordering|" + ">".join(order)


def draw(rng: random.Random, part: str, config: GeneratorSettings) -> Instance | None:
    """One instance of the part, or None when this sample falls into another."""
    order = rng.sample(NAMES, rng.choice((3, 4)))
    if part_of(order_key(order), config.heldout_percent) != part:
        return None
    relation = rng.choice(tuple(RELATIONS))
    more, less, most, least = RELATIONS[relation]
    statements = [
        f"{high} is {more} than {low}." if rng.random() < 0.5 else f"{low} is {less} than {high}."
        for high, low in zip(order, order[1:], strict=False)
    ]
    rng.shuffle(statements)
    wants_most = rng.random() < 0.5
    answer = order[0] if wants_most else order[-1]
    return Instance(
        key=order_key(order),
        template=f"{relation} {len(order)}",
        prompt=f"{' '.join(statements)} Who is {most if wants_most else least}?",
        answer=answer,
        responses=[reply("think", f"<think>{' > '.join(order)}</think>{answer}"), reply("direct", answer)],
        fields={"order": order},
    )


def document(rng: random.Random, config: GeneratorSettings) -> tuple[str, str]:
    """(title, text): a few comparisons, each with the order and the conclusion."""

    def piece() -> str:
        while True:
            instance = draw(rng, "train", config)
            if instance is not None:
                which = instance.prompt.rsplit(" ", 1)[1].rstrip("?")
                return f"{instance.prompt} {' > '.join(instance.fields['order'])}. {instance.answer} is {which}."

    return "comparisons", fill(piece, rng.randint(120, 360))
