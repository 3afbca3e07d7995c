"""All task sets together: the rows of a tasks artifact and the documents of the synthetic pretraining sources.

`generate_tasks(config, seed)` gives the three parts, the lookup documents and the constitution; `write_tasks` writes
them as a tasks artifact; `generate_documents(config, seed)` yields pretraining documents. Same config and seed, same
bytes, whatever PYTHONHASHSEED. Not covered: licences of anything that is not generated here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from loopline.base.files import write_json, write_jsonl
from loopline.tasks.generators import arithmetic, code, format, lookup, ordering, safety, word_problem
from loopline.tasks.generators.config import Family, GeneratorConfig
from loopline.tasks.generators.instance import Instance, Row, collect, random_for, rows

FAMILIES: tuple[Family, ...] = ("arithmetic", "word_problem", "ordering", "code", "format", "safety", "lookup")
GRADERS = {
    "arithmetic": "final_answer",
    "word_problem": "final_answer",
    "ordering": "final_answer",
    "code": "code_tests",
    "format": "format_check",
    "safety": "refusal",
    "lookup": "final_answer",
}
TAGS: dict[str, tuple[str, ...]] = {
    "arithmetic": ("reasoning",),
    "word_problem": ("reasoning",),
    "ordering": ("reasoning",),
    "lookup": ("tools",),
}
"""Tags of every row of a set."""
PARTS = ("train", "dev", "heldout")
Draw = Callable[[Random, str, GeneratorConfig], Instance | None]
DRAWS: dict[str, Draw] = {
    "arithmetic": arithmetic.draw,
    "word_problem": word_problem.draw,
    "ordering": ordering.draw,
    "code": code.draw,
    "format": format.draw,
    "safety": safety.draw,
}
DOCUMENTS: dict[str, Callable[[Random, GeneratorConfig], tuple[str, str]]] = {
    "arithmetic": arithmetic.document,
    "word_problem": word_problem.document,
    "ordering": ordering.document,
    "code": code.document,
    "safety": safety.document,
    "lookup": lookup.document,
}


@dataclass(frozen=True)
class Tasks:
    """Rows of the three parts, of the document set that lookup asks about, and of the constitution."""

    train: list[Row]
    dev: list[Row]
    heldout: list[Row]
    documents: list[Row]
    constitution: list[Row]


def instances(task_set: Family, part: str, config: GeneratorConfig, seed: int) -> list[Instance]:
    """The instances of one task set and part, with their canonical keys."""
    held = config.heldout_by_set.get(task_set, config.heldout)
    count = getattr(config.train, task_set) if part == "train" else held
    rng = random_for(seed, task_set, part)
    what = f"{part} {task_set}"
    if task_set == "lookup":
        things = lookup.entities(seed, part, config)
        return collect(lambda: lookup.draw(rng, things), count, what)
    draw = DRAWS[task_set]
    return collect(lambda: draw(rng, part, config), count, what)


def generate_tasks(config: GeneratorConfig, seed: int) -> Tasks:
    """Every task set in every part. Raises `UserError` when a count exceeds what the ranges allow."""
    part_rows: dict[str, list[Row]] = {part: [] for part in PARTS}
    documents: list[Row] = []
    for part in PARTS:
        for task_set in FAMILIES:
            found = instances(task_set, part, config, seed)
            part_rows[part] += rows(task_set, part, GRADERS[task_set], found, TAGS.get(task_set, ()))
        documents += lookup.documents(part, lookup.entities(seed, part, config))
    return Tasks(part_rows["train"], part_rows["dev"], part_rows["heldout"], documents, safety.CONSTITUTION)


def write_tasks(config: GeneratorConfig, seed: int, out: Path) -> Tasks:
    """Write train.jsonl, dev.jsonl, heldout.jsonl, documents.jsonl and constitution.json under `out`."""
    tasks = generate_tasks(config, seed)
    write_jsonl(out / "train.jsonl", tasks.train)
    write_jsonl(out / "dev.jsonl", tasks.dev)
    write_jsonl(out / "heldout.jsonl", tasks.heldout)
    write_jsonl(out / "documents.jsonl", tasks.documents)
    write_json(out / "constitution.json", tasks.constitution)
    return tasks


def generate_documents(config: GeneratorConfig, seed: int) -> Iterator[Row]:
    """Pretraining documents {"id", "source", "path", "licence", "text", "sha256"}; none holds a held-out instance."""
    for task_set, make in DOCUMENTS.items():
        rng = random_for(seed, task_set, "documents")
        left, number = getattr(config.documents, task_set), 0
        while left > 0:
            title, text = make(rng, config)
            digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
            yield {
                "id": f"{task_set}-{number:06d}",
                "source": f"synthetic/{task_set}",
                "path": f"synthetic/{task_set}/{title}-{number:06d}.txt",
                "licence": "CC0-1.0",
                "text": text,
                "sha256": digest,
            }
            left -= len(text.encode("utf-8"))
            number += 1
