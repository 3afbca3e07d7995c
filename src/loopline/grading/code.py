"""Code grades: run a function against its tests in the sandbox, and run Python graders.

Tests are pairs of arguments and expected values, or code (`assert double(2) == 4`, `check(double)`). Expected values
and tests never enter the process that runs the code, and exit codes prove nothing: a pair passes only when a value of
exactly the builtin type comes back and is equal here; for tests written as code see `driver`. Not covered: several
files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.thinking import read_thinking
from loopline.grading.grade import Grade, Sample
from loopline.sandbox.runner import Job, Result, SandboxPool, same

EXITS = ("SystemExit", "KeyboardInterrupt")
FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
START = re.compile(r"(?:async def|def|class|import|from|@)\b|@")
DRIVER = Path(__file__).with_name("driver.py").read_text(encoding="utf-8")
SECONDS = 5.0
"""Time for all calls that one run of tests makes."""
ROUNDS = 8
"""Times that calls may depend on answers to calls before them."""


def blocks_of(text: str) -> list[str]:
    """The fenced code blocks of a text, in order; one that is never closed goes to the end."""
    blocks: list[list[str]] = []
    fence = ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if fence and mark and mark[1].startswith(fence) and not line.strip("`~ \t"):
            fence = ""
        elif fence:
            blocks[-1].append(line)
        elif mark:
            fence = mark[1]
            blocks.append([])
    return ["\n".join(lines) for lines in blocks]


def defines(source: str, name: str) -> bool:
    """Whether a function, class or value `name` is defined at the left margin."""
    return bool(name) and bool(
        re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", source, re.MULTILINE)
    )


def source_of(sample: Sample) -> str:
    """The code of an answer: the last fenced block that defines what is asked for, else all blocks, else all of it."""
    answer = (read_thinking(sample.text).answer or "").strip("\r\n")
    blocks = blocks_of(answer)
    entry = str(sample.task.item.get("entry") or "")
    defining = [block for block in blocks if defines(block, entry)]
    return defining[-1] if defining else "\n".join(blocks) if blocks else answer


def sources_of(sample: Sample) -> list[str]:
    """Readings of an answer as a program; the first that compiles counts.

    Where the task gives the `head` of a function, the answer may be the whole function or only its body, and the body's
    first indentation may have been lost.
    """
    code, head = source_of(sample), str(sample.task.item.get("head") or "")
    lines = code.split("\n")
    first = next((number for number, line in enumerate(lines) if START.match(line)), 0)
    whole = [code, "\n".join(lines[first:])]
    if not head:
        return whole
    if defines(code, str(sample.task.item.get("entry") or "")):
        return [*(f"{head}\n{text}" for text in whole), *whole]
    end = next((n for n, line in enumerate(lines) if n and line.strip() and line[0] not in " \t#"), len(lines))
    readings = []
    for body in (code, "\n".join(lines[:end])):
        indented = "\n".join("    " + line for line in body.split("\n"))
        readings += [f"{head}{body}\n", f"{head}    {body}\n", f"{head}{indented}\n", f"{head}{body.expandtabs(4)}\n"]
    return readings


def grade_code(samples: Sequence[Sample], pool: SandboxPool) -> list[Grade]:
    """Grades of code samples, all of them run at once. Raises `UserError` for a task without tests."""
    kinds = [_kind(sample) for sample in samples]
    pairs = [sample for sample, kind in zip(samples, kinds, strict=True) if kind == "pairs"]
    coded = [sample for sample, kind in zip(samples, kinds, strict=True) if kind == "code"]
    results = pool.map([pairs_job(sample) for sample in pairs])
    found = {
        "pairs": iter([pairs_grade(sample, result) for sample, result in zip(pairs, results, strict=True)]),
        "code": iter(grade_by_code(coded, pool)),
    }
    return [next(found[kind]) for kind in kinds]


def _kind(sample: Sample) -> str:
    tests, entry = sample.task.item.get("tests"), sample.task.item.get("entry")
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        return "code"
    if not isinstance(tests, list) or not tests or not isinstance(entry, str):
        raise UserError(
            f"The code task {sample.task.id} has no tests",
            "give it `entry` (a name) and `tests`: [[arguments, expected], ...], or a list of assertions",
        )
    return "pairs"


def pairs_job(sample: Sample) -> Job:
    """The sandbox job of a sample whose tests are pairs."""
    item = sample.task.item
    return Job(source_of(sample).strip(), item["entry"], [arguments for arguments, _ in item["tests"]])


def flags_of(results: Sequence[Result]) -> set[str]:
    """Attempts at the sandbox rather than the task, and how the run ended."""
    flags = {f"hack_{event.split('.')[-1]}" for result in results for event in result.blocked}
    flags |= {"hack_exit" for result in results if result.error.startswith(EXITS)}
    flags |= {"hack_object" for result in results if "not a builtin value" in result.error}
    return flags | {result.status for result in results if result.status in ("timeout", "oom", "crashed")}


def unavailable(result: Result) -> Grade:
    """The grade when the sandbox itself failed."""
    return Grade(None, evidence=f"the sandbox failed: {result.error}", flags=("sandbox_unavailable",))


def pairs_grade(sample: Sample, results: Sequence[Result]) -> Grade:
    """1 when every pair passes."""
    expected = [value for _, value in sample.task.item["tests"]]
    if any(result.status == "unavailable" for result in results):
        return unavailable(results[0])
    passed = [r.status == "ok" and same(r.value, value) for r, value in zip(results, expected, strict=True)]
    first = next((number for number, right in enumerate(passed) if not right), None)
    evidence = f"{sum(passed)} of {len(passed)} tests pass"
    if first is not None:
        bad = results[first]
        evidence += f"; test {first}: {bad.error or f'got {bad.value!r:.60}, expected {expected[first]!r:.60}'}"
    scores = tuple(map(float, passed))
    return Grade(float(all(passed)), scores, evidence, tuple(sorted(flags_of(results))), results[0].seconds)


@dataclass
class _Run:
    """One sample on its way through rounds of calls and tests."""

    sample: Sample
    calls: list[Any] = field(default_factory=list)
    known: list[Any] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    seconds: float = 0.0
    grade: Grade | None = None

    def tests_job(self, quiet: bool = False) -> Job:
        item = self.sample.task.item
        given = (item.get("setup") or "", item["tests"], item.get("entry") or "", self.known, quiet)
        return Job(DRIVER, "run_tests", [given], SECONDS)

    def code_job(self) -> Job:
        return Job(f"{DRIVER}\nload({sources_of(self.sample)!r})\n", "answer", self.calls, SECONDS)

    def ungradable(self, why: str) -> None:
        self.grade = Grade(None, evidence=why, flags=("grader_failed",))


def grade_by_code(samples: Sequence[Sample], pool: SandboxPool) -> list[Grade]:
    """Grades of samples whose tests are code: 1 when every test passes."""
    runs = [_Run(sample) for sample in samples]
    firsts = {run.sample.task.id: run for run in runs}
    # Which calls the tests make at first is the same for every answer to a task.
    for first, (result,) in zip(
        firsts.values(), pool.map([one.tests_job(True) for one in firsts.values()]), strict=True
    ):
        for run in (run for run in runs if run.sample.task.id == first.sample.task.id):
            if result.status != "ok" or result.value["broken"]:
                why = result.value["broken"] if result.status == "ok" else result.error or result.status
                run.ungradable(f"the tests cannot be run: {why}")
            elif not result.value["calls"]:
                run.ungradable("the tests never call the code")
            else:
                run.calls = result.value["calls"]
    for _ in range(ROUNDS):
        live = [run for run in runs if run.grade is None]
        if not live:
            break
        for run, results in zip(live, pool.map([run.code_job() for run in live]), strict=True):
            run.flags |= flags_of(results)
            run.seconds = results[0].seconds
            if any(result.status == "unavailable" for result in results):
                run.grade = Grade(
                    None, evidence=f"the sandbox failed: {results[0].error}", flags=("sandbox_unavailable",)
                )
            run.known = [[call, _told(result)] for call, result in zip(run.calls, results, strict=True)]
        live = [run for run in live if run.grade is None]
        for run, (result,) in zip(live, pool.map([run.tests_job() for run in live]), strict=True):
            _judge(run, result)
        # Calls that depend on answers: go past the assertions, so that every one of them is seen.
        live = [run for run in live if run.grade is None]
        for run, (result,) in zip(live, pool.map([run.tests_job(True) for run in live]), strict=True):
            run.calls = result.value["calls"] if result.status == "ok" else run.calls
    for run in runs:
        if run.grade is None:
            run.grade = Grade(0.0, (), "the tests call the code differently every time", ("unsettled",), run.seconds)
    return [run.grade for run in runs if run.grade is not None]


def _told(result: Result) -> list[Any]:
    """What the tests learn about a call: ["ok", the encoded value] or ["error", what was raised]."""
    if result.status == "ok" and (result.value is None or isinstance(result.value, bool | int | float | str | list)):
        return ["ok", result.value]
    return ["error", result.error or result.status]


def _judge(run: _Run, result: Result) -> None:
    """Enter the grade that a run of the tests gives; none while calls are unanswered."""
    if result.status == "unavailable":
        run.grade = unavailable(result)
        return
    if result.status == "ok" and result.value["pending"]:
        return
    if result.status == "ok" and result.value["broken"]:
        run.ungradable(f"the tests cannot be run: {result.value['broken']}")
        return
    # Tests that hang or crash do so on what the code gave them.
    count = len(run.sample.task.item["tests"])
    errors = result.value["errors"] if result.status == "ok" else [result.error or result.status] * count
    errors += ["never ran"] * (count - len(errors))
    passed = [not error for error in errors]
    first = next((number for number, right in enumerate(passed) if not right), None)
    evidence = f"{sum(passed)} of {count} tests pass" + ("" if first is None else f"; test {first}: {errors[first]}")
    if any("not a builtin value" in error for error in errors):
        run.flags.add("hack_object")
    grade = Grade(float(all(passed)), tuple(map(float, passed)), evidence, tuple(sorted(run.flags)), run.seconds)
    run.grade = grade


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
