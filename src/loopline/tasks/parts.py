"""The rows of one task set of a recipe, in its three parts.

    parts = read_set("math", config, {"sets.math.file": artifact, ...}, seed)     # SetRows: .rows["train"], ...

A file is divided by a hash of the normalized prompt, so a row's part depends on neither its place nor the other rows.
Not covered: comparing the sets with one another (see `tasks.stage`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from loopline.base.errors import UserError
from loopline.store.artifact import Artifact
from loopline.tasks.compare import Row, prompt_of
from loopline.tasks.config import DataConfig, TaskSetConfig
from loopline.tasks.files import Table, read_table
from loopline.tasks.formats import Form, form_of
from loopline.tasks.generators.generate import HELDOUT, PARTS, find_generator, generate_set
from loopline.tasks.layouts import normalize
from loopline.tasks.rows import Message
from loopline.text.words import normal_form


@dataclass
class SetRows:
    """One set's rows and what they come with."""

    source: str
    """Where they come from, in words."""
    grader: str
    """Name of its grader, of the kind `tasks.config.READY` lists or the recipe defines; "" when none was named."""
    tags: tuple[str, ...] = ()
    rows: dict[str, list[Row]] = field(default_factory=lambda: {part: [] for part in PARTS})
    """Part -> rows."""
    fixed: tuple[str, ...] = ()
    """Parts that come from a file of their own."""
    documents: list[Row] = field(default_factory=list)
    constitution: list[Row] = field(default_factory=list)


def share_of(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text and the salt only."""
    digest = hashlib.blake2b(f"{salt}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_set(name: str, config: TaskSetConfig, inputs: Mapping[str, Artifact], seed: int) -> SetRows:
    """The rows of a set. Raises `UserError` naming the set, the file and the row at fault."""
    if config.generator is not None:
        found = _generated(name, config, seed)
    elif config.package is not None:
        found = _packaged(name, config, seed)
    else:
        found = _from_files(name, config, inputs)
    for part, limit in (("train", config.sizes.train), ("dev", config.sizes.dev), ("heldout", config.sizes.heldout)):
        if limit is not None:
            found.rows[part] = found.rows[part][:limit]
    found.tags = tuple(dict.fromkeys((*found.tags, *config.tags)))
    for part, rows in found.rows.items():
        for row in rows:
            row["task_set"], row["part"] = name, part
            row["tags"] = list(dict.fromkeys((*found.tags, *row.get("tags", ()))))
            if config.tools:
                row["tools"] = list(config.tools)
            if config.demonstrate_answers and not row["responses"] and row["answer"]:
                reply = {"role": "assistant", "content": row["answer"]}
                row["responses"] = [{"style": "answer", "messages": [reply]}]
    return found


def part_sizes(config: TaskSetConfig, train: int, heldout: int) -> dict[str, int]:
    """Rows of each part of a set that can be made in any number."""
    sizes = config.sizes
    held = heldout if sizes.heldout is None else sizes.heldout
    return {
        "train": train if sizes.train is None else sizes.train,
        "dev": held if sizes.dev is None else sizes.dev,
        "heldout": held,
    }


def _generated(name: str, config: TaskSetConfig, seed: int) -> SetRows:
    generator = find_generator(str(config.generator))
    try:
        settings = generator.settings.model_validate(config.settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"The task set {name}: settings.{key}: {first['msg']}",
            f"the generator {generator.name} has the settings {', '.join(generator.settings.model_fields)}",
        ) from error
    made = generate_set(name, generator, settings, part_sizes(config, generator.train, HELDOUT), seed)
    rows = {part: getattr(made, part) for part in PARTS}
    if config.system:
        for row in (row for found in rows.values() for row in found):
            row["messages"] = [{"role": "system", "content": config.system}, *row["messages"]]
    return SetRows(
        f"generator {generator.name}", generator.grader, generator.tags, rows,
        documents=made.documents, constitution=made.constitution,
    )  # fmt: skip


def _packaged(name: str, config: TaskSetConfig, seed: int) -> SetRows:
    from loopline.tasks.reasoning_gym import PACKAGE, make_rows

    package, colon, dataset = str(config.package).partition(":")
    if package.replace("-", "_") != PACKAGE or not colon or not dataset:
        raise UserError(
            f"The task set {name}: the package {config.package!r} is not known", f"write {PACKAGE}:<data set>"
        )
    sizes = part_sizes(config, 2000, 200)
    readings = make_rows(dataset, dict(config.settings), sizes, seed)
    found = SetRows(f"{PACKAGE} {dataset}", "reasoning_gym")
    template = config.template or "{prompt}"
    for part, rows in readings.items():
        for number, (prompt, answer, item) in enumerate(rows):
            messages = _messages(template.replace("{prompt}", prompt), config.system)
            row = {"id": f"{name}-{part}-{number:06d}", "messages": messages, "answer": answer, "item": item}
            found.rows[part].append({**row, "grader": found.grader, "responses": []})
    return found


def _messages(prompt: str, system: str) -> list[Message]:
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": prompt}]


def _from_files(name: str, config: TaskSetConfig, inputs: Mapping[str, Artifact]) -> SetRows:
    named = {part: getattr(config, "file" if part == "train" else f"{part}_file") for part in PARTS}
    fields = {part: "file" if part == "train" else f"{part}_file" for part in PARTS}
    found = SetRows("", "")
    taken: dict[str, int] = {}
    sources = []
    for part in PARTS:
        if named[part] is None:
            continue
        path = _path(inputs, f"sets.{name}.{fields[part]}")
        table = read_table(path)
        form, rows = rows_of(name, table, config)
        found.rows[part] = rows
        sources.append(f"{part} {path.name} ({form.name if form else 'columns'})")
        found.grader = found.grader or (form.grader if form else "")
        for row in rows:
            # Numbers of rows repeat between files.
            seen = taken.get(row["id"], 0)
            taken[row["id"]] = seen + 1
            row["id"] = f"{row['id']}-{seen + 1}" if seen else row["id"]
    found.fixed = tuple(part for part in PARTS if part != "train" and named[part] is not None)
    found.source = ", ".join(sources)
    train = found.rows["train"]
    for part, share in (("heldout", config.heldout), ("dev", config.dev)):
        if named[part] is None and named["train"] is not None:
            chosen = [share_of(normal_form(prompt_of(row)), part) < share for row in train]
            found.rows[part] = [row for row, inside in zip(train, chosen, strict=True) if inside]
            train = [row for row, inside in zip(train, chosen, strict=True) if not inside]
            if part == "heldout" and share > 0 and not found.rows[part]:
                raise UserError(
                    f"The task set {name}: none of {len(train)} rows falls into the held-out share of {share}",
                    "raise `heldout`, or give it a file of its own",
                )
    found.rows["train"] = train
    return found


def _path(inputs: Mapping[str, Artifact], name: str) -> Path:
    if name not in inputs:
        raise UserError(f"The file of {name} is missing", "name it in the recipe, relative to the recipe's folder")
    return inputs[name].path


def rows_of(name: str, table: Table, config: TaskSetConfig) -> tuple[Form | None, list[Row]]:
    """The form of a file's rows, and the rows as tasks of the set `name` without part and grader."""
    columns = {"prompt": config.prompt, "answer": config.answer, "messages": config.messages}
    given = {wanted: column for wanted, column in columns.items() if column is not None and column != wanted}
    named = {wanted: column for wanted, column in columns.items() if column is not None}
    form = form_of(table, config.format, named)
    rows = table.rows if config.limit is None else table.rows[: config.limit]
    if form is None:
        return None, _from_columns(name, table, config, given)
    template = config.template or form.template
    found: list[Row] = []
    for number, row in enumerate(rows):
        reading = form.read(row, table.place(number))
        prompt = template.replace("{prompt}", reading.prompt)
        solution = [{"style": "reference", "messages": [{"role": "assistant", "content": reading.solution}]}]
        found.append(
            {
                "id": f"{name}-{reading.id if reading.id is not None else _hash(prompt)}",
                "messages": _messages(prompt, config.system),
                "answer": reading.answer,
                "responses": solution if reading.solution else [],
                "item": reading.item,
            }
        )
    return form, found


def _from_columns(name: str, table: Table, config: TaskSetConfig, columns: Mapping[str, str]) -> list[Row]:
    settings = DataConfig(
        columns=dict(columns), limit=config.limit, system=config.system,
        template=config.template or "{prompt}",
    )  # fmt: skip
    chat = config.format == "chat" or config.messages is not None
    if chat and "prompt" in table.columns and "prompt" not in columns:
        table = Table(
            table.name, table.format, tuple(column for column in table.columns if column != "prompt"), table.rows
        )
    found: list[Row] = []
    for row in normalize(table, "prompts", settings).rows:
        own = row["id"] if not str(row["id"]).startswith("row-") else _hash(prompt_of(row))
        item = {key: value for key, value in row["item"].items() if key != "messages"}
        found.append({**row, "id": f"{name}-{own}", "item": item, "responses": []})
    return found


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=6).hexdigest()
