"""Tasks: what is asked, the reference answer, which grader judges it, and example responses.

    tasks = load_tasks(artifact / "heldout.jsonl", sets=["math"], limit=450)

A row may carry any further fields; they are the task's `item`, which graders and templates read. Not covered: making
tasks (see `tasks.generators`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loopline.base.config import Config
from loopline.base.errors import UserError
from loopline.base.files import read_jsonl

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]


class Task(Config):
    """One row of a tasks artifact."""

    id: str
    """Unique in its file."""
    task_set: str
    """The task set it comes from; results are reported per set and per tag."""
    part: str = "train"
    """"train", "dev" or "heldout"."""
    tags: tuple[str, ...] = ()
    """What it is good for: those of its set and its own, such as `reasoning` or `must_refuse`."""
    template: str = ""
    """Which template of the task set made it."""
    messages: tuple[Message, ...]
    """The conversation the policy answers."""
    tools: tuple[dict[str, Any], ...] = ()
    """Schemas of the tools it may call, in OpenAI's form."""
    answer: str = ""
    """The reference answer."""
    grader: str
    """Name of the grader that decides it."""
    responses: tuple[dict[str, Any], ...] = ()
    """Example responses {"style", "messages"}; one with a "prompt" answers that prompt in place of `messages`."""
    item: dict[str, Any] = {}
    """Every further field of the row."""

    @property
    def prompt(self) -> str:
        """Text of the last user turn."""
        return next((str(m["content"]) for m in reversed(self.messages) if m["role"] == "user"), "")

    def conversations(self, style: str | None = None) -> list[tuple[str, list[Message], list[Message]]]:
        """(style, prompt messages, response messages) of every example response, or of those of one style."""
        return [
            (row["style"], list(row.get("prompt", self.messages)), list(row["messages"]))
            for row in self.responses
            if style is None or row["style"] == style
        ]

    def with_facts(self) -> Task:
        """The same task with its `facts`, where it has any, in a system turn before the question."""
        facts = self.item.get("facts")
        if not facts:
            return self
        notes = {"role": "system", "content": "Notes: " + " ".join(facts)}
        return self.model_copy(update={"messages": (notes, *self.messages)})

    def as_item(self) -> dict[str, Any]:
        """The row as grader templates see it: `item.answer`, `item.task_set` and every further field."""
        own = {"id": self.id, "task_set": self.task_set, "tags": list(self.tags)}
        return {**self.item, **own, "answer": self.answer, "prompt": self.prompt}


COLUMNS = frozenset(Task.model_fields) - {"item"}


def task_from_row(row: Mapping[str, Any], where: str = "the task") -> Task:
    """A task from one JSON row. Raises `UserError` naming `where` and the field at fault."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not a JSON object", 'write one {"id": ..., "task_set": ..., ...} per line')
    fields = {key: value for key, value in row.items() if key in COLUMNS}
    item = {key: value for key, value in row.items() if key not in COLUMNS}
    if isinstance(row.get("item"), dict):
        item = {**row["item"], **{key: value for key, value in item.items() if key != "item"}}
    try:
        task = Task(**fields, item=item)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: the field {field!r} is wrong ({first['msg']})", "fix that field") from error
    if not task.messages or any(m.get("role") not in ROLES or "content" not in m for m in task.messages):
        raise UserError(
            f"{where}: `messages` must be turns with a role ({', '.join(ROLES)}) and content",
            'write at least {"role": "user", "content": "..."}',
        )
    return task


def load_tasks(
    path: Path,
    sets: Collection[str] | None = None,
    *,
    tags: Collection[str] | None = None,
    limit: int | None = None,
    limit_by_set: Mapping[str, int] | None = None,
) -> list[Task]:
    """The tasks of a JSONL file, in file order.

    `sets` keeps those task sets, `tags` the rows with one of those tags, `limit` the first so many of each set,
    `limit_by_set` another number of the sets it names. Raises `UserError` for a missing file, a bad row, an id that
    occurs twice, or a set or tag without a single task.
    """
    tasks: list[Task] = []
    taken: Counter[str] = Counter()
    seen: dict[str, int] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        name = row.get("task_set") if isinstance(row, dict) else None
        if sets is not None and isinstance(name, str) and name not in sets:
            continue
        task = task_from_row(row, f"{path}, row {number}")
        if task.id in seen:
            raise UserError(
                f"{path}, row {number}: the id {task.id!r} is that of row {seen[task.id]}", "use unique ids"
            )
        seen[task.id] = number
        if tags is not None and not set(tags) & set(task.tags):
            continue
        most = (limit_by_set or {}).get(task.task_set, limit)
        if most is not None and taken[task.task_set] >= most:
            continue
        taken[task.task_set] += 1
        tasks.append(task)
    missing = [name for name in sets or () if not taken[name]]
    if missing:
        raise UserError(
            f"{path} has no tasks of the task set {missing[0]!r}", "define that task set, or leave it out of `tasks`"
        )
    if not tasks and tags is not None:
        raise UserError(f"{path} has no tasks tagged {' or '.join(sorted(tags))}", "tag a task set, or name sets")
    return tasks


def load_chosen(path: Path, names: Sequence[str]) -> list[Task]:
    """The tasks of a JSONL file that belong to one of `names`: task sets, or `tag:<tag>`.

    Raises `UserError` for a name without a single task.
    """
    tasks = load_tasks(path)

    def belongs(task: Task, name: str) -> bool:
        return name.removeprefix("tag:") in task.tags if name.startswith("tag:") else name == task.task_set

    for name in names:
        if not any(belongs(task, name) for task in tasks):
            known = ", ".join(sorted({task.task_set for task in tasks}))
            raise UserError(f"{path} has no tasks of {name!r}", f"name task sets ({known}) or tag:<tag>")
    return [task for task in tasks if any(belongs(task, name) for name in names)]
