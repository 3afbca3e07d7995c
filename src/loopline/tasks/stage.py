"""Stage `tasks`: the recipe's task sets as one artifact, in three parts that share no task.

Writes train.jsonl, dev.jsonl, heldout.jsonl, sets.json, graders.json (the definitions that the tasks name), and where a
generator gives them documents.jsonl and constitution.json. What one set holds out, no other set trains on. Not covered:
whether the graders work (see the stage `graders`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json, write_jsonl
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.compare import Row, apart
from loopline.tasks.config import READY, TasksConfig, TaskSetConfig
from loopline.tasks.generators.generate import PARTS
from loopline.tasks.parts import SetRows, read_set
from loopline.tasks.sets import set_entry

SHOWN = 3
"""Overlapping tasks that a message shows."""


def tasks(config: TasksConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Read or make every set, compare their parts, write the artifact. Raises `UserError` for what cannot be used."""
    if not config.sets:
        raise UserError("There is no task set", "define one under `tasks`, such as math: {file: math.jsonl}")
    found: dict[str, SetRows] = {}
    definitions: dict[str, dict[str, Any]] = {}
    with ctx.progress("reading task sets", len(config.sets)) as bar:
        for name, one in config.sets.items():
            found[name] = read_set(name, one, inputs, ctx.seed)
            _set_grader(name, one, found[name], inputs, definitions)
            bar.advance()
    left_out = separate(found, config)
    _check_ids(found)
    for part in PARTS:
        write_jsonl(ctx.out / f"{part}.jsonl", (row for rows in found.values() for row in rows.rows[part]))
    write_json(ctx.out / "sets.json", {name: _entry(rows, left_out[name]) for name, rows in found.items()})
    write_json(ctx.out / "graders.json", definitions)
    documents = [row for rows in found.values() for row in rows.documents]
    if documents:
        write_jsonl(ctx.out / "documents.jsonl", documents)
    constitution = [row for rows in found.values() for row in rows.constitution]
    if constitution:
        write_json(ctx.out / "constitution.json", constitution)
    counts = {part: sum(len(rows.rows[part]) for rows in found.values()) for part in PARTS}
    ctx.metrics.summary(sets=len(found), **counts, left_out=sum(left_out.values()))


def _entry(rows: SetRows, left_out: int) -> Row:
    return {**set_entry(rows.grader, rows.tags, rows.rows, rows.source), "left_out": left_out}


def separate(found: Mapping[str, SetRows], config: TasksConfig) -> dict[str, int]:
    """Take out of every training part what a dev or held-out part asks, and out of the dev parts what is held out.

    Rows of a part with a file of its own, or of a training file beside a held-out file, are the user's to keep apart:
    for them an overlap is refused unless the set says `overlap: drop`. Returns rows left out per set.
    """
    left_out = dict.fromkeys(found, 0)
    for part, above in (("dev", ("heldout",)), ("train", ("heldout", "dev"))):
        others = [row for rows in found.values() for name in above for row in rows.rows[name]]
        for name, rows in found.items():
            kept, overlaps = apart(rows.rows[part], others)
            own_file = part in rows.fixed or (part == "train" and "heldout" in rows.fixed)
            held = [overlap for overlap in overlaps if overlap.other["part"] in ("heldout", *rows.fixed)]
            if held and own_file and config.sets[name].overlap == "refuse":
                listed = "; ".join(str(overlap) for overlap in held[:SHOWN])
                raise UserError(
                    f"The task set {name}: {len(held)} {part} tasks are asked in a part they must not be in: {listed}",
                    f"remove them from the file, or leave them out with tasks.{name}.overlap: drop",
                )
            rows.rows[part] = kept
            left_out[name] += len(overlaps)
    return left_out


def _check_ids(found: Mapping[str, SetRows]) -> None:
    """Ids name a task everywhere, so two tasks may not share one."""
    seen: dict[str, str] = {}
    for name, rows in found.items():
        for row in (row for part in PARTS for row in rows.rows[part]):
            if row["id"] in seen:
                raise UserError(
                    f"The id {row['id']!r} occurs twice, in the task sets {seen[row['id']]} and {name}",
                    "give rows unique ids, or rename a set",
                )
            seen[row["id"]] = name


def _set_grader(
    name: str,
    config: TaskSetConfig,
    rows: SetRows,
    inputs: Mapping[str, Artifact],
    definitions: dict[str, dict[str, Any]],
) -> None:
    """Decide the set's grader, enter its definition, and name it in every row."""
    definition: dict[str, Any] | None = None
    if config.grader_file is not None:
        definition = read_grader(inputs[f"sets.{name}.grader_file"].path)
    elif isinstance(config.grader, dict):
        definition = dict(config.grader)
    elif config.grader is not None:
        rows.grader = config.grader
    if definition is not None:
        rows.grader = name
    if not rows.grader:
        raise UserError(
            f"The task set {name} names no grader",
            f"set tasks.{name}.grader (--grader of a command) to one of {', '.join(READY)}, a .json or .py file, or a "
            "definition",
        )
    if definition is None and rows.grader in READY:
        definition = {"type": rows.grader}
    if definition is not None and definitions.setdefault(rows.grader, definition) != definition:
        raise UserError(f"Two graders are called {rows.grader!r}", f"rename the task set {name}")
    for found in rows.rows.values():
        for row in found:
            row["grader"] = rows.grader


def read_grader(path: Path) -> dict[str, Any]:
    """The definition in a .json file, or of a .py file with `grade(sample, item)`. Raises `UserError`."""
    if path.suffix == ".json":
        definition = read_json(path)
        if isinstance(definition, dict) and "type" not in definition and len(definition) == 1:
            definition = next(iter(definition.values()))  # {"grader": {...}}
        if not isinstance(definition, dict):
            raise UserError(f"{path} holds no grader", 'write {"type": ...}')
        return definition
    if path.suffix != ".py":
        raise UserError(f"{path} is neither .json nor .py", "write a definition as JSON, or `grade` in a .py file")
    try:
        source = path.read_text(encoding="utf-8")
        compile(source, str(path), "exec")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{path}{line}: not Python ({error})", "fix that line") from error
    return {"type": "python", "source": source}
