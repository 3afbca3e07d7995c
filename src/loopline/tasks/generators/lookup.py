"""Lookup: questions whose answer must be read from a document set, some with a calculation on top.

The questions of the three parts are about different things, and so are their documents. Fact sheets for pretraining
give the same things other numbers on every sheet, so that reading is learned and remembering is not.

Example responses: "tool" (search, calculator, answer) and "context" (the facts are in a system turn before the
question). A response with a "prompt" is an answer to that prompt in place of the row's own messages.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass

from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import Instance, Row, fill, part_of, random_for

# fmt: off
ADJECTIVES = (
    "blue", "red", "green", "black", "white", "grey", "pink", "gold", "round", "flat", "tall", "small",
    "old", "new", "soft", "hard", "light", "dark", "warm", "cold", "wide", "thin", "plain", "fine",
)
NOUNS = (
    "lamp", "cup", "hat", "box", "key", "map", "pen", "ring", "rope", "ship", "shoe", "sock",
    "bowl", "drum", "fork", "gate", "jar", "kite", "spoon", "stool", "table", "wheel", "bell", "brush",
    "chair", "clock", "coat", "desk", "plate", "torch",
)
# fmt: on


@dataclass(frozen=True)
class Entity:
    """One thing and its numbers: price in coins, weight in kilos."""

    name: str
    coins: int
    kilos: int

    @property
    def plural(self) -> str:
        """The name in the plural."""
        return f"{self.name}es" if self.name.endswith(("sh", "ch", "x")) else f"{self.name}s"

    def fact(self, attribute: str) -> str:
        """The sentence that states one attribute ("cost" or "weigh")."""
        if attribute == "cost":
            return f"The {self.name} costs {self.coins} coins."
        return f"The {self.name} weighs {self.kilos} kilos."

    def number(self, attribute: str) -> int:
        """The value of one attribute ("cost" or "weigh")."""
        return self.coins if attribute == "cost" else self.kilos

    @property
    def text(self) -> str:
        """The document about this thing."""
        return f"{self.fact('cost')} {self.fact('weigh')}"


@functools.cache
def names_of(part: str, heldout_percent: int) -> tuple[str, ...]:
    """The names of the things of one part."""
    names = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    return tuple(n for n in names if part_of(f"lookup|{n}", heldout_percent) == part)


def entities(seed: int, part: str, config: GeneratorSettings) -> list[Entity]:
    """Every thing of the part with its numbers."""
    rng = random_for(seed, "lookup/entities", part)
    return [Entity(n, rng.randint(2, 20), rng.randint(2, 20)) for n in names_of(part, config.heldout_percent)]


def documents(part: str, things: Iterable[Entity]) -> list[Row]:
    """Rows of documents.jsonl, one per thing."""
    return [
        {"id": f"doc-{thing.name.replace(' ', '-')}", "part": part, "title": thing.name, "text": thing.text}
        for thing in things
    ]


def tool_call(name: str, **arguments: str) -> str:
    """The text of a tool call as the policy writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@dataclass(frozen=True)
class Question:
    """A question over things: what is asked, whom about, and the calculation ("" when the fact is the answer)."""

    template: str
    text: str
    things: list[Entity]
    attribute: str
    expression: str
    answer: int


def ask(rng: random.Random, things: list[Entity]) -> Question | None:
    """One question, or None when the sample has no good answer (two things that do not differ)."""
    attribute, kind = rng.choice(("cost", "weigh")), rng.choice(("single", "together", "difference", "sum"))
    first, second = rng.sample(things, 2)
    a, b = first.number(attribute), second.number(attribute)
    if kind == "single":
        return Question(kind, f"What does the {first.name} {attribute}?", [first], attribute, "", a)
    if kind == "together":
        n = rng.randint(2, 4)
        text = f"What do {n} {first.plural} {attribute} together?"
        return Question(kind, text, [first], attribute, f"{n}*{a}", n * a)
    if kind == "sum":
        text = f"What do the {first.name} and the {second.name} {attribute} together?"
        return Question(kind, text, [first, second], attribute, f"{a}+{b}", a + b)
    if a <= b:
        return None
    text = f"How much more does the {first.name} {attribute} than the {second.name}?"
    return Question(kind, text, [first, second], attribute, f"{a}-{b}", a - b)


def tool_messages(question: Question) -> list[Row]:
    """The trajectory with tools: one search per thing, the calculator if anything is to be computed, the answer."""
    messages: list[Row] = []
    for thing in question.things:
        messages.append({"role": "assistant", "content": tool_call("search", query=thing.name)})
        messages.append({"role": "tool", "content": thing.text})
    if question.expression:
        messages.append({"role": "assistant", "content": tool_call("calculator", expression=question.expression)})
        messages.append({"role": "tool", "content": str(question.answer)})
    return [*messages, {"role": "assistant", "content": str(question.answer)}]


def context_turn(facts: Iterable[str]) -> Row:
    """The system turn that states facts before the question."""
    return {"role": "system", "content": "Notes: " + " ".join(facts)}


def draw(rng: random.Random, things: list[Entity]) -> Instance | None:
    """One instance about these things, or None when this sample has no good answer."""
    question = ask(rng, things)
    if question is None:
        return None
    facts = [thing.fact(question.attribute) for thing in question.things]
    answer = str(question.answer)
    worked = f"<think>{question.expression}={answer}</think>{answer}" if question.expression else answer
    # The notes may say more than is asked, in any order, as a retrieval would.
    notes = [thing.text for thing in question.things] if rng.random() < 0.5 else list(facts)
    rng.shuffle(notes)
    prompt = [context_turn(notes), {"role": "user", "content": question.text}]
    return Instance(
        key="lookup|" + "|".join(sorted(thing.name for thing in question.things)),
        template=question.template,
        prompt=question.text,
        answer=answer,
        responses=[
            {"style": "tool", "messages": tool_messages(question)},
            {"style": "context", "prompt": prompt, "messages": [{"role": "assistant", "content": worked}]},
        ],
        fields={"facts": facts, "query": " ".join(thing.name for thing in question.things)},
    )


def document(rng: random.Random, config: GeneratorSettings) -> tuple[str, str]:
    """(title, text): a fact sheet with invented numbers, then questions and answers about it."""
    names = rng.sample(names_of("train", config.heldout_percent), rng.randint(2, 4))
    things = [Entity(name, rng.randint(2, 20), rng.randint(2, 20)) for name in names]

    def piece() -> str:
        while True:
            question = ask(rng, things)
            if question is not None:
                return f"{question.text} {question.expression}{'=' if question.expression else ''}{question.answer}."

    return "facts", f"{' '.join(thing.text for thing in things)}\n{fill(piece, rng.randint(80, 220))}"
