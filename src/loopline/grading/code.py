"""Code grades: run a function against its tests in the sandbox, and run Python graders.

Expected values never enter the process that runs the code, and exit codes prove nothing: a test passes only when a
value of exactly the builtin type comes back and is equal here. Not covered: several files, tests written as code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loopline.base.errors import UserError
from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.sandbox.runner import Job, Result, same

FENCE = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)
EXITS = ("SystemExit", "KeyboardInterrupt")


def source_of(sample: Sample) -> str:
    """The code of an answer: the only fenced block, or all of it."""
    answer = split_thinking(sample.text)[1] or ""
    blocks = FENCE.findall(answer)
    return blocks[0] if len(blocks) == 1 else answer


def code_job(sample: Sample) -> Job:
    """The sandbox job of a code sample. Raises `UserError` when the task has no tests."""
    tests, entry = sample.task.item.get("tests"), sample.task.item.get("entry")
    if not isinstance(tests, list) or not tests or not isinstance(entry, str):
        raise UserError(
            f"The code task {sample.task.id} has no tests",
            "give it `entry` (a name) and `tests` [[arguments, expected], ...]",
        )
    return Job(source_of(sample), entry, [arguments for arguments, _ in tests])


def code_grade(sample: Sample, results: Sequence[Result]) -> Grade:
    """1 when every test passes. Flags name attempts at the sandbox rather than the task."""
    expected = [value for _, value in sample.task.item["tests"]]
    if any(result.status == "unavailable" for result in results):
        return Grade(None, evidence=f"the sandbox failed: {results[0].error}", flags=("sandbox_unavailable",))
    passed = [r.status == "ok" and same(r.value, value) for r, value in zip(results, expected, strict=True)]
    flags = {f"hack_{event.split('.')[-1]}" for result in results for event in result.blocked}
    flags |= {"hack_exit" for result in results if result.error.startswith(EXITS)}
    flags |= {"hack_object" for result in results if "not a builtin value" in result.error}
    flags |= {result.status for result in results if result.status in ("timeout", "oom", "crashed")}
    first = next((number for number, right in enumerate(passed) if not right), None)
    evidence = f"{sum(passed)} of {len(passed)} tests pass"
    if first is not None:
        bad = results[first]
        evidence += f"; test {first}: {bad.error or f'got {bad.value!r:.60}, expected {expected[first]!r:.60}'}"
    scores = tuple(map(float, passed))
    return Grade(float(all(passed)), scores, evidence, tuple(sorted(flags)), results[0].seconds)


def python_job(source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Job:
    """The sandbox job of a Python grader `def grade(sample, item) -> float`."""
    return Job(source, "grade", [(dict(sample), dict(item))], seconds=10.0, trusted=True)


def python_grade(result: Result) -> Grade:
    """The score that a Python grader returned; None, with the reason, when it did not return one in [0, 1]."""
    if result.status != "ok":
        return Grade(None, evidence=f"the grader failed: {result.error or result.status}", flags=("grader_failed",))
    value = result.value
    if type(value) not in (int, float, bool) or not 0 <= value <= 1:
        return Grade(None, evidence=f"the grader returned {value!r:.60}, not 0..1", flags=("grader_failed",))
    return Grade(float(value), evidence=result.stdout.strip()[:200], seconds=result.seconds)
