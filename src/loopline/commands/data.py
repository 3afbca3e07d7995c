"""A user's file of prompts as tasks, for the commands that take a grader.

Writes `train.jsonl`, a tasks file, and `data.json` with what became of the rows. Not covered: lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.base.files import write_json, write_jsonl
from loopline.commands.config import GRADER, PROMPTS
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.config import DataConfig
from loopline.tasks.files import read_table
from loopline.tasks.layouts import normalize
from loopline.tasks.sets import set_entry


def data(config: DataConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Read the file given as the input "file". Raises `UserError` for anything wrong with it."""
    table = read_table(inputs["file"].path)
    found = normalize(table, "prompts", config)
    rows = {"train": [{**row, "task_set": PROMPTS, "grader": GRADER} for row in found.rows]}
    if "heldout" in inputs:
        kept = normalize(read_table(inputs["heldout"].path), "prompts", config.model_copy(update={"limit": None})).rows
        rows["heldout"] = [{**row, "task_set": PROMPTS, "grader": GRADER, "part": "heldout"} for row in kept]
    for part, members in rows.items():
        write_jsonl(ctx.out / f"{part}.jsonl", members)
    write_json(ctx.out / "sets.json", {PROMPTS: set_entry(GRADER, (), rows, "a file")})
    facts = {"format": table.format, "layout": list(found.layout), "rows": len(found.rows), "left_out": found.counts}
    write_json(ctx.out / "data.json", facts)
    ctx.metrics.summary(rows=len(found.rows))
