"""Whether one grader may be trusted: it must accept reference answers and pass the audit.

    paid = check_references(graders, "gsm8k", tasks, limit=24, force=False)
    entry = review(graders, "gsm8k", tasks, seed=0, limit=24)          # {"passed", "probes"}

Where tasks have no references, the audit's probes that need none are all there is. Not covered: what the policy writes
(see `evaluation.graders`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random
from typing import Any

from loopline.base.errors import UserError
from loopline.grading.audit import audit_one, good_text, tasks_for
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.task import Task

WITHOUT_REFERENCE = ("empty", "format_only", "copied_prompt")
"""Probes of the audit that need no reference answer."""
ANY_TEXT = ("empty",)
"""The same where nearly any text is right, as for constraints of form."""
APART = frozenset({"refusal", "code_tests", "format_check", "steps", "final_answer", "choice", "instructions"})
"""Types to which two answers are one only when their texts are."""
FORCE = "to go on nevertheless, set graders.force=true (--force-grader)"


def warn(text: str) -> None:
    """Tell the user at once; it is no error."""
    print(f"    Note: {text}", file=sys.stderr, flush=True)


def objection(what: str, fix: str, force: bool) -> bool:
    """Refuse, or say that `force` overrules; returns whether it did."""
    if not force:
        raise UserError(what, f"{fix} {FORCE}")
    warn(f"{what}. Going on, as --force-grader says.")
    return True


def check_references(graders: GraderSet, name: str, tasks: Sequence[Task], limit: int, force: bool) -> bool | None:
    """Whether the grader gives reference answers a score above 0; None when there are none.

    Refuses one that fails on all of them, or gives all of them 0.
    """
    some = [task for task in tasks if good_text(task)][:limit]
    if not some:
        return None
    grades = graders.grade([Sample(task, good_text(task)) for task in some], name)
    if all(grade.score is None for grade in grades):
        objection(
            f"The grader {name!r} failed on every one of {len(some)} reference answers; the first time: "
            f"{grades[0].evidence or 'no score'}",
            "fix the grader (it sees sample['output_text'] and the file's columns in item), or",
            force,
        )
        return False
    if not any(grade.score for grade in grades):
        first = next(number for number, grade in enumerate(grades) if grade.score is not None)
        objection(
            f"The grader {name!r} never pays: it gave 0 to every one of {len(some)} reference answers, such as "
            f"{good_text(some[first])[-80:]!r} for {some[first].id}"
            + (f" ({grades[first].evidence})" if grades[first].evidence else ""),
            "compare with what the file's columns hold (`answer` names the reference's), or",
            force,
        )
        return False
    return True


def review(graders: GraderSet, name: str, tasks: Sequence[Task], seed: int, limit: int) -> dict[str, Any]:
    """The audit of one grader on up to `limit` of the tasks it is for: {"passed", "probes"}.

    Raises `UserError` when no task fits.
    """
    definition = graders.definitions[name]
    chosen = tasks_for(name, definition, tasks, limit, Random(f"{seed}/audit/{name}"))
    known = [task for task in chosen if good_text(task)]
    if known:
        return audit_one(graders, name, apart(graders, name, known), seed)
    probes = ANY_TEXT if definition["type"] == "instructions" else WITHOUT_REFERENCE
    return audit_one(graders, name, chosen, seed, probes)


def apart(graders: GraderSet, name: str, tasks: Sequence[Task]) -> list[Task]:
    """Those of the tasks whose answers differ from one another to the grader.

    The audit sends the answer of one task to another as a wrong one; two sums that come to the same number would make
    it a right one. A grader to which most answers are alike is shown them all: that is what the audit is to find.
    """
    if graders.definitions[name]["type"] in APART:
        return list(tasks)
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i)]
    grades = graders.grade([Sample(tasks[i], good_text(tasks[j])) for i, j in pairs], name) if pairs else []
    alike = {pair for pair, grade in zip(pairs, grades, strict=True) if grade.score}
    kept: list[int] = []
    for number in range(len(tasks)):
        if not any((number, other) in alike for other in kept):
            kept.append(number)
    return [tasks[number] for number in kept] if 2 * len(kept) >= len(tasks) else list(tasks)
