"""Word problems: two- and three-step stories of gaining and losing things.

The calculation behind a story decides its part, so neither other names nor another story can leak it.
"""

from __future__ import annotations

import random

from loopline.tasks.generators.arithmetic import (
    belongs,
    calculation_key,
    draw_terms,
    steps_of,
)
from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import Instance, fill, reply

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
THINGS = ("apples", "books", "coins", "cards", "shells", "pens", "eggs", "stones")

# name: (signs of the second and later numbers, story, question, closing sentence)
TEMPLATES: dict[str, tuple[str, str, str, str]] = {
    "buy_give": (
        "+-",
        "{a} has {0} {n}. {a} buys {1} more and gives {2} to {b}.",
        "How many {n} does {a} have?",
        "{a} has {r} {n}.",
    ),
    "lose_find": (
        "-+",
        "{a} has {0} {n}. {a} loses {1} and then finds {2}.",
        "How many {n} does {a} have?",
        "{a} has {r} {n}.",
    ),
    "box_fill": (
        "++",
        "A box holds {0} {n}. {a} puts in {1} and {b} puts in {2}.",
        "How many {n} are in the box?",
        "The box holds {r} {n}.",
    ),
    "box_empty": (
        "--",
        "A box holds {0} {n}. {a} takes {1} and {b} takes {2}.",
        "How many {n} are left?",
        "There are {r} {n} left.",
    ),
    "table": (
        "+-",
        "There are {0} {n} on a table. {a} adds {1}. {b} takes away {2}.",
        "How many {n} are on the table?",
        "There are {r} {n} on the table.",
    ),
    "gifts": (
        "++",
        "{a} has {0} {n}. {b} gives {a} {1} and {c} gives {a} {2}.",
        "How many {n} does {a} have?",
        "{a} has {r} {n}.",
    ),
    "shop": (
        "-+",
        "A shop has {0} {n}. It sells {1} and gets {2} new ones.",
        "How many {n} are in the shop?",
        "The shop has {r} {n}.",
    ),
    "together": (
        "+-",
        "{a} has {0} {n} and {b} has {1}. They lose {2}.",
        "How many {n} do they have?",
        "They have {r} {n}.",
    ),
    "pages": (
        "++",
        "{a} reads {0} pages on Monday, {1} on Tuesday and {2} on Friday.",
        "How many pages does {a} read?",
        "{a} reads {r} pages.",
    ),
    "market": (
        "+-+",
        "{a} has {0} {n}, buys {1}, loses {2} and finds {3}.",
        "How many {n} does {a} have?",
        "{a} has {r} {n}.",
    ),
    "bus": (
        "-+-",
        "A bus carries {0} people. {1} get off, {2} get on and {3} get off.",
        "How many people are on the bus?",
        "There are {r} people on the bus.",
    ),
    "bag": (
        "--+",
        "A bag holds {0} {n}. {a} takes {1}, {b} takes {2} and {c} puts back {3}.",
        "How many {n} are in the bag?",
        "The bag holds {r} {n}.",
    ),
}


def draw(rng: random.Random, part: str, config: GeneratorSettings) -> Instance | None:
    """One instance of the part, or None when this sample falls into another."""
    name = rng.choice(tuple(TEMPLATES))
    signs, story, question, closing = TEMPLATES[name]
    terms = draw_terms(rng, signs, config, low=2)
    if terms is None:
        return None
    if not belongs(terms, part, config):
        return None
    a, b, c = rng.sample(NAMES, 3)
    numbers = [abs(term) for term in terms]
    words = {"a": a, "b": b, "c": c, "n": rng.choice(THINGS), "r": sum(terms)}
    answer, steps = str(sum(terms)), steps_of(terms)
    return Instance(
        key=calculation_key(terms),
        template=name,
        prompt=f"{story} {question}".format(*numbers, **words),
        answer=answer,
        responses=[reply("think", f"<think>{';'.join(steps)}</think>{answer}"), reply("direct", answer)],
        fields={"solution": f"{'. '.join(steps)}. {closing.format(**words)}"},
    )


def document(rng: random.Random, config: GeneratorSettings) -> tuple[str, str]:
    """(title, text): a few stories with their worked solution in plain prose."""

    def story() -> str:
        while True:
            instance = draw(rng, "train", config)
            if instance is not None:
                return f"{instance.prompt} {instance.fields['solution']}"

    return "stories", fill(story, rng.randint(120, 420))
