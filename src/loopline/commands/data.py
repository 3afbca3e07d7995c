"""The data stage of the user's commands: a file in, rows of one form and a card out.

Writes `rows.jsonl` (for prompts `train.jsonl`, a tasks file), `data.json` with counts, and `README.md`, the card. Not
covered: lengths in tokens, which depend on the model and are checked by the stage that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopline.base.files import write_json, write_jsonl, write_text
from loopline.commands.config import GRADER, PROMPTS
from loopline.posttrain.card import Section, dataset_card, quantiles, size_category
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.config import DataConfig
from loopline.tasks.files import Table, read_table
from loopline.tasks.layouts import Normalized, normalize


def data(config: DataConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Read the file given as the input "file". Raises `UserError` for anything wrong with it."""
    file = inputs["file"]
    with ctx.progress("reading the data", 1) as bar:
        table = read_table(file.path)
        found = normalize(table, config.purpose, config)
        bar.advance()
    if config.purpose == "prompts":
        rows = [{**row, "task_set": PROMPTS, "grader": GRADER} for row in found.rows]
        write_jsonl(ctx.out / "train.jsonl", rows)
    else:
        write_jsonl(ctx.out / "rows.jsonl", found.rows)
    facts = describe(table, found, config, file.digest)
    write_json(ctx.out / "data.json", facts)
    write_text(ctx.out / "README.md", card(facts))
    ctx.metrics.summary(rows=facts["rows"])


def describe(table: Table, found: Normalized, config: DataConfig, digest: str) -> dict[str, Any]:
    """What is worth knowing about the rows."""
    parts = ("messages", "prompt", "chosen", "rejected", "completion", "answer")
    lengths = {
        part: [len(row[part]) if part == "answer" else sum(len(item["content"]) for item in row[part]) for row in rows]
        for part in parts
        if (rows := [row for row in found.rows if part in row])
    }
    facts: dict[str, Any] = {
        "file": table.name,
        "format": table.format,
        "sha256": digest,
        "purpose": config.purpose,
        "columns": list(table.columns),
        "layout": list(found.layout),
        "mapping": dict(config.columns),
        "rows_in_file": len(table.rows),
        "rows": len(found.rows),
        "left_out": found.counts,
        "characters": {part: quantiles(values) for part, values in lengths.items()},
    }
    if config.purpose == "steps":
        marks = [label for row in found.rows for label in row["labels"]]
        facts["labels"] = {"steps": len(marks), "above_half": sum(mark > 0.5 for mark in marks)}
    if config.purpose == "labels":
        labels = [row["label"] for row in found.rows]
        facts["labels"] = {"above_zero": sum(label > 0 for label in labels), "others": sum(x <= 0 for x in labels)}
    return facts


def card(facts: Mapping[str, Any]) -> str:
    """The card of a file's rows."""
    named = ", ".join(f"`{wanted}` from `{given}`" for wanted, given in facts["mapping"].items())
    sections: dict[str, Section] = {
        "Source": f"`{facts['file']}` ({facts['format']}), sha256 `{facts['sha256']}`; "
        f"columns {', '.join(f'`{name}`' for name in facts['columns'])}. Read as {' and '.join(facts['layout'])}"
        + (f", {named}." if named else "."),
        "Rows": [
            ("rows in the file", facts["rows_in_file"]),
            ("rows used", facts["rows"]),
            *((f"left out: {why}", count) for why, count in facts["left_out"].items()),
        ],
        "Characters": [
            (part, ", ".join(f"{name} {value}" for name, value in values.items()))
            for part, values in facts["characters"].items()
        ],
    }
    tasks = {
        "pairs": "preference data",
        "labels": "labelled answers",
        "steps": "labelled steps",
        "prompts": "prompts with references",
    }
    title = f"{facts['file']} as {tasks.get(facts['purpose'], 'conversations')}"
    return dataset_card(title, sections, {"size_categories": [size_category(facts["rows"])]})
