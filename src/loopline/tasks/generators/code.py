"""Code: one-line functions over numbers, strings and lists, described as a sequence of operations, with tests.

`Write f(x): add 3, then multiply by 2.` -> `def f(x): return (x+3)*2`. The key is the sequence of operations.
Expected values come from applying the operations here, never from running the reference text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import Instance, fill, part_of, reply


@dataclass(frozen=True)
class Operation:
    """What one step says, how it is written around an expression, and what it does."""

    says: str
    writes: Callable[[str], str]
    does: Callable[[Any], Any]


def _bare(text: str) -> str:
    """The expression in brackets when it is a sum, which binds less than what follows."""
    return f"({text})" if any(sign in text for sign in "+-*") and not text.endswith((")", "]")) else text


def _number(rng: random.Random) -> Operation:
    kind, n = rng.choice(("add", "subtract", "multiply", "square")), rng.randint(2, 20)
    if kind == "add":
        return Operation(f"add {n}", lambda e: f"{e}+{n}", lambda v: v + n)
    if kind == "subtract":
        return Operation(f"subtract {n}", lambda e: f"{e}-{n}", lambda v: v - n)
    if kind == "multiply":
        m = n % 9 + 2
        return Operation(f"multiply by {m}", lambda e: f"({e})*{m}" if e != "x" else f"x*{m}", lambda v: v * m)
    return Operation("square it", lambda e: f"({e})**2" if e != "x" else "x**2", lambda v: v * v)


def _slice(rng: random.Random) -> Operation:
    n = rng.randint(1, 9)
    return rng.choice(
        (
            Operation(f"keep the first {n}", lambda e: f"{_bare(e)}[:{n}]", lambda v: v[:n]),
            Operation(f"keep the last {n}", lambda e: f"{_bare(e)}[-{n}:]", lambda v: v[-n:]),
            Operation(f"drop the first {n}", lambda e: f"{_bare(e)}[{n}:]", lambda v: v[n:]),
            Operation("reverse it", lambda e: f"{_bare(e)}[::-1]", lambda v: v[::-1]),
            Operation("repeat it twice", lambda e: f"{_bare(e)}*2", lambda v: v * 2),
        )
    )


def _sequence(rng: random.Random) -> Operation:
    return Operation("sort it", lambda e: f"sorted({e})", sorted) if rng.random() < 0.15 else _slice(rng)


def _text(rng: random.Random) -> Operation:
    if rng.random() < 0.6:
        return _slice(rng)
    letter = rng.choice("abcxyz")
    return rng.choice(
        (
            Operation("make it upper case", lambda e: f"{_bare(e)}.upper()", lambda v: v.upper()),
            Operation(f"add '{letter}' at the end", lambda e: f"{e}+'{letter}'", lambda v: v + letter),
        )
    )


def _reduce(rng: random.Random) -> Operation:
    return rng.choice(
        (
            Operation("return the length", lambda e: f"len({e})", len),
            Operation("return the largest", lambda e: f"max({e})", max),
            Operation("return the smallest", lambda e: f"min({e})", min),
            Operation("return the sum", lambda e: f"sum({e})", sum),
        )
    )


def _inputs(kind: str, rng: random.Random) -> list[Any]:
    # Long enough that few chains of slices empty them.
    if kind == "number":
        return [0, rng.randint(1, 9), rng.randint(10, 30), -rng.randint(1, 9)]
    if kind == "text":
        return ["".join(rng.choices("abcdefgh", k=rng.randint(11, 13))) for _ in range(4)]
    return [rng.choices(range(21), k=rng.randint(11, 13)) for _ in range(4)]


def operations_key(kind: str, operations: list[Operation]) -> str:
    """Key of a function: the kind of argument and what its operations say, additions in either order alike."""
    says = [operation.says for operation in operations]
    if kind == "number" and all(text.startswith(("add", "subtract")) for text in says):
        says = sorted(says)
    return f"code|{kind}|" + "|".join(says)


def draw(rng: random.Random, part: str, config: GeneratorSettings) -> Instance | None:
    """One instance of the part, or None when this sample falls into another."""
    kind = rng.choice(("number", "text", "list"))
    make = {"number": _number, "text": _text, "list": _sequence}[kind]
    operations = [make(rng) for _ in range(rng.choice((1, 2, 2, 2)))]
    if kind == "list" and rng.random() < 0.5:
        operations.append(_reduce(rng))
    says = [operation.says for operation in operations]
    if len(set(says)) < len(says):
        return None
    key = operations_key(kind, operations)
    if part_of(key, config.heldout_percent) != part:
        return None
    expression = "x"
    for operation in operations:
        expression = operation.writes(expression)
    tests = []
    for value in _inputs(kind, rng):
        result = value
        for operation in operations:
            if result in ("", []):  # a chain that empties its argument tests nothing
                return None
            result = operation.does(result)
        tests.append([[value], result])
    answer = f"def f(x): return {expression}"
    noun = {"number": "the number x", "text": "the text x", "list": "the list x"}[kind]
    return Instance(
        key=key,
        template=f"{kind} {len(operations)}",
        prompt=f"Write f(x). Take {noun}, {', then '.join(says)}.",
        answer=answer,
        responses=[reply("direct", answer)],
        fields={"tests": tests, "entry": "f"},
    )


def document(rng: random.Random, config: GeneratorSettings) -> tuple[str, str]:
    """(title, text): short functions with docstrings, some with a worked call."""

    def piece() -> str:
        while True:
            instance = draw(rng, "train", config)
            if instance is None:
                continue
            says = instance.prompt.removeprefix("Write f(x). ")
            body = instance.answer.removeprefix("def f(x): ")
            if rng.random() < 0.5:
                return f"# {says}\n{instance.answer}"
            return f'def f(x):\n    """{says}"""\n    {body}'

    return "functions", fill(piece, rng.randint(150, 420), "\n\n")
