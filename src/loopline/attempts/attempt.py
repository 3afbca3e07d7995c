"""One answer of a policy to one task: what it was asked, what it wrote, how that was graded.

    attempt.text, attempt.score
    write_jsonl(path, (attempt.to_row() for group in groups for attempt in group))
    again = attempt_from_row(attempt.to_row(tokens=True), {task.id: task})      # equal to `attempt`

`to_row` is the one form in which answers are written down. With `tokens` a row holds all that was sampled, ids,
log-probs and versions, so that whoever resumes goes on with the very same attempt. Not covered: asking (see
`attempts.ask`), answers of several turns with tools (see `inference.trajectory`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from loopline.base.errors import UserError
from loopline.grading.grade import Grade, Sample
from loopline.inference.completion import Completion
from loopline.tasks.task import Task

OPTIONAL = tuple(f.name for f in fields(Completion) if f.default is not MISSING or f.default_factory is not MISSING)
"""Parts of a completion that a row leaves out where they are empty."""


@dataclass(frozen=True)
class Attempt:
    """One answer to one task."""

    task: Task
    sample: int
    """Which of the task's samples it is, from 0."""
    prompt: tuple[int, ...]
    """Ids of what the policy saw; empty where a server renders the messages itself."""
    completion: Completion
    """What was sampled: ids, log-probs, what ended it. Never made again from the text."""
    text: str
    """What was written, without the stop token or the stop text."""
    grade: Grade | None = None
    """By the task's own grader; None when no graders were passed."""
    components: Mapping[str, Grade] = field(default_factory=dict)
    """By further graders, as far as some were asked for."""
    thinking: bool = True
    """Whether the prompt let it think; False where the template closed the thinking part."""

    @property
    def score(self) -> float | None:
        """The grade's score; None when it was not, or could not be, graded."""
        return None if self.grade is None else self.grade.score

    @property
    def tokens(self) -> int | None:
        """Tokens that were sampled, the stop token included; None where a server did not say."""
        count = max(len(self.completion.token_ids), len(self.completion.logprobs))
        return count if count or not self.text else None

    def as_sample(self) -> Sample:
        """What graders see."""
        return Sample(self.task, self.text, self.completion.finish)

    def to_row(self, tokens: bool = False) -> dict[str, Any]:
        """The attempt as one JSON object; with `tokens` everything that was sampled."""
        task = self.task
        row: dict[str, Any] = {
            "task": task.id,
            "task_set": task.task_set,
            "tags": list(task.tags),
            "sample": self.sample,
            "messages": [dict(message) for message in task.messages],
            "output": self.text,
            "finish": self.completion.finish,
            "tokens": self.tokens,
            **({} if self.thinking else {"thinking": False}),
            **({} if self.grade is None else _grade_row(self.grade)),
        }
        if self.components:
            row["components"] = {name: _grade_row(grade) for name, grade in self.components.items()}
        return {**row, "sampled": {"prompt": list(self.prompt), **_completion_row(self.completion)}} if tokens else row


def attempt_from_row(row: Mapping[str, Any], tasks: Mapping[str, Task]) -> Attempt:
    """The attempt that `to_row(tokens=True)` wrote; `tasks` by id.

    Raises `UserError` for a row without tokens, or of a task that is not among `tasks`.
    """
    if "sampled" not in row or row.get("task") not in tasks:
        what = "holds no tokens" if "sampled" not in row else "is of a task that is not at hand"
        raise UserError(f"The attempt at {row.get('task')!r} {what}", "delete its file: it is sampled again")
    sampled = dict(row["sampled"])
    prompt = tuple(sampled.pop("prompt"))
    if "kept_sets" in sampled:
        sampled["kept_sets"] = [base64.b64decode(kept) for kept in sampled["kept_sets"]]
    return Attempt(
        tasks[row["task"]],
        row["sample"],
        prompt,
        Completion(**sampled, finish=row["finish"]),
        row["output"],
        _grade_from(row) if "score" in row else None,
        {name: _grade_from(grade) for name, grade in row.get("components", {}).items()},
        row.get("thinking", True),
    )


def _grade_row(grade: Grade) -> dict[str, Any]:
    return {
        "score": grade.score,
        "evidence": grade.evidence,
        "flags": list(grade.flags),
        **({"steps": list(grade.steps)} if grade.steps else {}),
    }


def _grade_from(row: Mapping[str, Any]) -> Grade:
    return Grade(row["score"], tuple(row.get("steps", ())), row["evidence"], tuple(row["flags"]))


def _completion_row(completion: Completion) -> dict[str, Any]:
    found = {f.name: getattr(completion, f.name) for f in fields(completion) if f.name != "finish"}
    row = {name: value for name, value in found.items() if name not in OPTIONAL or value not in ([], None, 0)}
    if completion.kept_sets:
        row["kept_sets"] = [base64.b64encode(kept).decode("ascii") for kept in completion.kept_sets]
    return row
