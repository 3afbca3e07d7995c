"""The built-in generators, the rows of one task set, and the documents of the synthetic pretraining sources.

    made = generate_set("sums", GENERATORS["arithmetic"], settings, {"train": 5000, "dev": 450, "heldout": 450}, seed)

`generate_tasks` and `write_tasks` make all seven sets at once; `generate_documents` yields pretraining documents. Same
settings and seed, same bytes, whatever PYTHONHASHSEED. Not covered: licences of anything that is not generated here.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl
from loopline.tasks.generators import arithmetic, code, format, lookup, ordering, safety, word_problem
from loopline.tasks.generators.config import Family, GeneratorConfig, GeneratorSettings, SyntheticConfig
from loopline.tasks.generators.instance import Instance, Row, collect, random_for, rows
from loopline.tasks.sets import set_entry

PARTS = ("train", "dev", "heldout")
Draw = Callable[[Random, str, GeneratorSettings], Instance | None]
Document = Callable[[Random, GeneratorSettings], tuple[str, str]]


@dataclass(frozen=True)
class Generator:
    """One kind of instance. A package of yours adds one as `generator: package.module:object`."""

    name: str
    """Enters the seed, so that sets of one generator under two names have the same instances."""
    draw: Draw | None
    """(rng, part, settings) -> one instance of the part, or None when it fell into another."""
    grader: str
    """Name of the ready grader of its rows."""
    tags: tuple[str, ...] = ()
    """Tags of every row."""
    train: int = 5000
    """Training instances unless a recipe says otherwise."""
    document: Document | None = None
    """One pretraining document (title, text) without instances of other parts; None for none."""
    constitution: tuple[Row, ...] = ()
    """Written principles that its rows name."""
    settings: type[GeneratorSettings] = GeneratorSettings
    """Its settings."""


GENERATORS: dict[str, Generator] = {
    one.name: one
    for one in (
        Generator("arithmetic", arithmetic.draw, "final_answer", ("reasoning",), 20000, arithmetic.document),
        Generator("word_problem", word_problem.draw, "final_answer", ("reasoning",), 10000, word_problem.document),
        Generator("ordering", ordering.draw, "final_answer", ("reasoning",), 8000, ordering.document),
        Generator("code", code.draw, "code_tests", (), 4000, code.document),
        Generator("format", format.draw, "format_check", (), 3000),
        Generator("safety", safety.draw, "refusal", (), 3000, safety.document, tuple(safety.CONSTITUTION)),
        # Its instances are about things, and things belong to parts.
        Generator("lookup", None, "final_answer", ("tools",), 4000, lookup.document),
    )
}
FAMILIES: tuple[Family, ...] = ("arithmetic", "word_problem", "ordering", "code", "format", "safety", "lookup")
HELDOUT = 450
"""Held-out and dev instances unless a recipe says otherwise: a 95% interval of at most 4.6 points either side."""


@dataclass(frozen=True)
class Tasks:
    """Rows of the three parts, of a document set that tasks ask about, and of a constitution."""

    train: list[Row] = field(default_factory=list)
    dev: list[Row] = field(default_factory=list)
    heldout: list[Row] = field(default_factory=list)
    documents: list[Row] = field(default_factory=list)
    constitution: list[Row] = field(default_factory=list)


def find_generator(name: str) -> Generator:
    """A built-in generator, or the one at `package.module:object`. Raises `UserError` when there is none."""
    if name in GENERATORS:
        return GENERATORS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"There is no generator {name!r}", f"use one of {', '.join(GENERATORS)}, or package.module:object"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The generator {name} cannot be imported ({error})", "install its package") from error
    if not isinstance(found, Generator):
        raise UserError(f"{name} is no Generator", "make it one of loopline.tasks.generators.generate.Generator")
    return found


def instances(generator: Generator, part: str, settings: GeneratorSettings, count: int, seed: int) -> list[Instance]:
    """`count` distinct instances of a part, with their canonical keys. Raises `UserError` for a space too small."""
    rng = random_for(seed, generator.name, part)
    what = f"{part} {generator.name}"
    if generator.draw is None:
        things = lookup.entities(seed, part, settings)
        return collect(lambda: lookup.draw(rng, things), count, what)
    draw = generator.draw
    return collect(lambda: draw(rng, part, settings), count, what)


def generate_set(
    name: str, generator: Generator, settings: GeneratorSettings, sizes: Mapping[str, int], seed: int
) -> Tasks:
    """The rows of the task set `name`, `sizes` of each part."""
    made: dict[str, list[Row]] = {}
    documents: list[Row] = []
    for part in PARTS:
        found = instances(generator, part, settings, sizes[part], seed)
        made[part] = rows(name, part, generator.grader, found, generator.tags)
        if generator.draw is None:
            documents += lookup.documents(part, lookup.entities(seed, part, settings))
    return Tasks(**made, documents=documents, constitution=list(generator.constitution))


def sizes_of(config: GeneratorConfig, name: Family) -> dict[str, int]:
    """Instances of each part of one set."""
    held = config.heldout_by_set.get(name, config.heldout)
    return {"train": getattr(config.train, name), "dev": held, "heldout": held}


def generate_tasks(config: GeneratorConfig, seed: int) -> Tasks:
    """Every generated set in every part. Raises `UserError` when a count exceeds what the ranges allow."""
    whole = Tasks()
    for name in FAMILIES:
        made = generate_set(name, GENERATORS[name], config, sizes_of(config, name), seed)
        for column in (*PARTS, "documents", "constitution"):
            getattr(whole, column).extend(getattr(made, column))
    return whole


def write_tasks(config: GeneratorConfig, seed: int, out: Path) -> Tasks:
    """Write a tasks artifact of all seven sets under `out`, without its artifact.json."""
    tasks = generate_tasks(config, seed)
    for part in PARTS:
        write_jsonl(out / f"{part}.jsonl", getattr(tasks, part))
    write_jsonl(out / "documents.jsonl", tasks.documents)
    write_json(out / "constitution.json", tasks.constitution)
    everything = {part: getattr(tasks, part) for part in PARTS}
    write_json(out / "sets.json", {name: entry_of(name, GENERATORS[name], everything) for name in FAMILIES})
    write_json(out / "graders.json", {one.grader: {"type": one.grader} for one in GENERATORS.values()})
    return tasks


def entry_of(name: str, generator: Generator, parts: Mapping[str, list[Row]]) -> Row:
    """The entry of a generated set in sets.json."""
    mine = {part: [row for row in found if row["task_set"] == name] for part, found in parts.items()}
    return set_entry(generator.grader, generator.tags, mine, f"generator {generator.name}")


def generate_documents(config: SyntheticConfig, seed: int) -> Iterator[Row]:
    """Pretraining documents {"id", "source", "path", "licence", "text", "sha256"}; none holds a held-out instance."""
    for name, generator in GENERATORS.items():
        if generator.document is None:
            continue
        rng = random_for(seed, name, "documents")
        left, number = getattr(config.documents, name), 0
        while left > 0:
            title, text = generator.document(rng, config)
            digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
            yield {
                "id": f"{name}-{number:06d}",
                "source": f"synthetic/{name}",
                "path": f"synthetic/{name}/{title}-{number:06d}.txt",
                "licence": "CC0-1.0",
                "text": text,
                "sha256": digest,
            }
            left -= len(text.encode("utf-8"))
            number += 1
