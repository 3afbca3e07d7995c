"""All families together: the rows of a tasks artifact and the documents of the synthetic pretraining sources.

`generate_tasks(config, seed)` gives the two splits, the lookup documents and the constitution; `write_tasks` writes
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
SPLITS = ("train", "heldout")
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
    """Rows of the two splits, of the document set that lookup asks about, and of the constitution."""

    train: list[Row]
    heldout: list[Row]
    documents: list[Row]
    constitution: list[Row]


def instances(family: Family, split: str, config: GeneratorConfig, seed: int) -> list[Instance]:
    """The instances of one family and split, with their canonical keys."""
    held = config.heldout_by_family.get(family, config.heldout)
    count = held if split == "heldout" else getattr(config.train, family)
    rng = random_for(seed, family, split)
    what = f"{split} {family}"
    if family == "lookup":
        things = lookup.entities(seed, split, config)
        return collect(lambda: lookup.draw(rng, things), count, what)
    draw = DRAWS[family]
    return collect(lambda: draw(rng, split, config), count, what)


def generate_tasks(config: GeneratorConfig, seed: int) -> Tasks:
    """Every family in both splits. Raises `UserError` when a count exceeds what the ranges allow."""
    split_rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    documents: list[Row] = []
    for split in SPLITS:
        for family in FAMILIES:
            split_rows[split] += rows(family, split, GRADERS[family], instances(family, split, config, seed))
        documents += lookup.documents(split, lookup.entities(seed, split, config))
    return Tasks(split_rows["train"], split_rows["heldout"], documents, safety.CONSTITUTION)


def write_tasks(config: GeneratorConfig, seed: int, out: Path) -> Tasks:
    """Write train.jsonl, heldout.jsonl, documents.jsonl and constitution.json under `out`."""
    tasks = generate_tasks(config, seed)
    write_jsonl(out / "train.jsonl", tasks.train)
    write_jsonl(out / "heldout.jsonl", tasks.heldout)
    write_jsonl(out / "documents.jsonl", tasks.documents)
    write_json(out / "constitution.json", tasks.constitution)
    return tasks


def generate_documents(config: GeneratorConfig, seed: int) -> Iterator[Row]:
    """Pretraining documents {"id", "source", "path", "licence", "text", "sha256"}; none holds a held-out instance."""
    for family, make in DOCUMENTS.items():
        rng = random_for(seed, family, "documents")
        left, number = getattr(config.documents, family), 0
        while left > 0:
            title, text = make(rng, config)
            digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
            yield {
                "id": f"{family}-{number:06d}",
                "source": f"synthetic/{family}",
                "path": f"synthetic/{family}/{title}-{number:06d}.txt",
                "licence": "CC0-1.0",
                "text": text,
                "sha256": digest,
            }
            left -= len(text.encode("utf-8"))
            number += 1
