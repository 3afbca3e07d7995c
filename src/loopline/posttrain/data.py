"""What post-training trains on: a user's file, rows of earlier stages, written answers; all without held-out text.

    heldout = heldout_of(inputs)
    sources, facts = read_sources(inputs, "pairs", config.read, heldout, ctx)

Rows artifacts are read by the code that reads users' files: rows.jsonl for conversations, preferences.jsonl (OpenAI's
preference form) for everything else. Not covered: tokens (see `training.conversations`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from loopline.base.errors import UserError
from loopline.chat.tokenizer import Tokenizer
from loopline.posttrain.sft_config import DemonstrationsConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.config import DataConfig
from loopline.tasks.files import Row, read_table
from loopline.tasks.layouts import Purpose, normalize
from loopline.tasks.sets import select_sets
from loopline.tasks.task import load_tasks
from loopline.text.overlap import HeldoutText
from loopline.text.words import normal_form
from loopline.training.conversations import Message, task_examples
from loopline.training.lengths import Item

PARTS = ("dev", "heldout")
"""Parts of a tasks artifact that nothing may be trained on."""


def checkpoint_of(artifact: Artifact) -> Artifact:
    """The checkpoint itself, where an artifact (a release) holds one beside other things."""
    inner = artifact / "model"
    if (artifact / "config.json").exists() or not inner.exists():
        return artifact
    return Artifact(inner, artifact.stage, "checkpoint", artifact.identity, artifact.digest)


class HeldoutTasks:
    """The tasks that are not for training, ready to be looked for in what is."""

    def __init__(self, tasks: Artifact) -> None:
        self.path = tasks.path
        files = [tasks / f"{part}.jsonl" for part in PARTS]
        self.text = HeldoutText([task.prompt for file in files if file.exists() for task in load_tasks(file)])

    @cached_property
    def training(self) -> set[str]:
        """Normal forms of the training tasks' prompts."""
        return {normal_form(task.prompt) for task in load_tasks(self.path / "train.jsonl")}

    def holds(self, text: str) -> bool:
        """Whether `text` holds one of them.

        A training task as a whole does not, however much of its wording it shares with them: that the parts have no
        task in common is seen to where tasks are made.
        """
        if not self.text.holds(text):
            return False
        form = normal_form(text)
        return form in self.text.whole or form not in self.training

    def within(self, messages: Iterable[Message]) -> bool:
        """Whether one of the messages holds one."""
        return any(self.holds(str(message.get("content") or "")) for message in messages)


def heldout_of(inputs: Mapping[str, Artifact]) -> HeldoutTasks | None:
    """What is held out of training; None where the stage has no tasks."""
    return HeldoutTasks(inputs["tasks"]) if "tasks" in inputs else None


def read_sources(
    inputs: Mapping[str, Artifact], purpose: Purpose, read: DataConfig, heldout: HeldoutTasks | None, ctx: Context
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Rows by source ("data", and "rows" or "rows.<node>" for artifacts), and what became of each source's rows.

    `read` is for "data". Raises `UserError` for files that cannot be read and a source of which nothing is left.
    """
    rows: dict[str, list[Row]] = {}
    facts: dict[str, Any] = {}
    for role, artifact in inputs.items():
        if role != "data" and role.partition(".")[0] != "rows":
            continue
        file = artifact.path
        if role != "data":
            file /= "rows.jsonl" if purpose == "conversations" else "preferences.jsonl"
        with ctx.progress(f"reading {role}", 1) as bar:
            table = read_table(file)
            found = normalize(table, purpose, read if role == "data" else None)
            bar.advance()
        clean = [row for row in found.rows if heldout is None or not heldout.within(_messages(row))]
        left_out = dict(found.counts)
        if len(clean) < len(found.rows):
            left_out["held-out text"] = len(found.rows) - len(clean)
        if not clean:
            raise UserError(
                f"{file}: every row holds text of a task that is kept for testing",
                "train on rows that differ from the development and held-out parts of the tasks",
            )
        rows[role] = clean
        facts[role] = {
            "format": table.format,
            "layout": list(found.layout),
            "rows_in_file": len(table.rows),
            "rows": len(clean),
            "left_out": left_out,
            "unused_columns": list(found.unused),
        }
    return rows, facts


def _messages(row: Row) -> list[Message]:
    parts = ("messages", "prompt", "chosen", "rejected", "completion")
    steps = [{"role": "assistant", "content": step} for step in row.get("steps", ())]
    return [*(message for part in parts for message in row.get(part, ())), *steps]


def chosen_sets(inputs: Mapping[str, Artifact], choice: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    """Task sets and their shares (see `select_sets`). Raises `UserError` where there are no tasks to choose from."""
    if "tasks" not in inputs:
        raise UserError("This stage needs task sets, but there are none", "define them under `tasks:` in the recipe")
    return select_sets(choice, inputs["tasks"] / "sets.json")


def demonstrations(
    tokenizer: Tokenizer,
    inputs: Mapping[str, Artifact],
    config: DemonstrationsConfig,
    heldout: HeldoutTasks | None,
    rng: np.random.Generator,
) -> tuple[dict[str, list[Item]], dict[str, float], int]:
    """Written answers by task set, the sets' shares, and how many tasks were left out as held-out text."""
    if not config.tasks:
        return {}, {}, 0
    shares = chosen_sets(inputs, config.tasks)
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=list(shares))
    clean = [task for task in tasks if heldout is None or not heldout.within(task.messages)]
    return task_examples(tokenizer, clean, config.styles, rng, config.limits), shares, len(tasks) - len(clean)


def mix(
    items: Mapping[str, Sequence[Item]], sets: Mapping[str, float], shares: Mapping[str, float]
) -> dict[str, float]:
    """Each source's part of a step. `items` by source, of which those in `sets` are task sets with shares of their own.

    `shares` is of "tasks" (together) and the other sources (`rows.<node>` counts as `rows`); empty goes by size. Raises
    `UserError` where it leaves out a source, or names one that is not there.
    """
    top: dict[str, list[str]] = {}
    for name in items:
        top.setdefault("tasks" if name in sets else name.partition(".")[0], []).append(name)
    if not top:
        raise UserError("There is nothing to train on", "set `data`, or `tasks`, or give an input `rows`")
    sizes = {name: float(sum(len(items[member]) for member in members)) for name, members in top.items()}
    missing = sorted(set(top) ^ set(shares)) if shares else []
    if missing:
        what = "names no part for" if missing[0] in top else "names a part for what is not given:"
        raise UserError(f"`shares` {what} {missing[0]}", f"give shares of {', '.join(sorted(top))}")
    parts: dict[str, float] = {}
    for name, members in top.items():
        weights = {member: sets[member] if name == "tasks" else float(len(items[member])) for member in members}
        # One source keeps the numbers it was given: what they add up to does not count.
        whole = sum(weights.values()) if len(top) > 1 else 1.0
        part = (shares or sizes)[name] if len(top) > 1 else 1.0
        parts |= {member: part * weight / whole for member, weight in weights.items()}
    return parts
