"""From grader definitions to grades.

    graders = GraderSet.from_json(artifact / "graders.json")
    grades = graders.grade(samples)              # each sample by its task's own grader
    grades = graders.grade(samples, "steps")     # all by one

Definitions are data in the OpenAI grader format (string_check, text_similarity, python, multi) plus own types. Every
grader gives 0 to an answer that was cut off, never ends its thinking, or is empty; OpenAI types see the text after
thinking as `sample.output_text`. Not covered: score_model and label_model, which need a judge's endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.grading import answers
from loopline.grading.code import grade_code, python_grade, python_job
from loopline.grading.formula import Formula
from loopline.grading.grade import Grade, Sample, rejection
from loopline.grading.gym import grade_gym
from loopline.grading.instructions import instructions
from loopline.grading.template import MissingField, check_template, render, sample_namespace
from loopline.grading.verifiers import VERIFIERS as OWN_FORM
from loopline.grading.verifiers import answer_of
from loopline.sandbox.runner import Job, SandboxPool
from loopline.text.similarity import METRICS, similarity

VERIFIERS: dict[str, Callable[[Sample], Grade]] = {
    **OWN_FORM,
    "gsm8k": answers.gsm8k,
    "math": answers.math,
    "choice": answers.choice,
    "instructions": instructions,
}
"""Ready graders that run no code, by type."""
OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.lower() in text.lower(),
}
FIELDS: dict[str, set[str]] = {
    "string_check": {"input", "reference", "operation"},
    "text_similarity": {"input", "reference", "evaluation_metric"},
    "python": {"source"},
    "multi": {"graders", "calculate_output"},
    "code_tests": set(),
    "reasoning_gym": set(),
    **{name: set() for name in VERIFIERS},
}
RUN_CODE = ("code_tests", "python", "reasoning_gym")
"""Types that run code, in processes of their own."""
OPTIONAL = {"type", "name", "tags", "image_tag"}
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_definition(definition: Any, where: str) -> None:
    """Raise `UserError`, naming `where` and the key, for a definition that cannot be used."""
    if not isinstance(definition, Mapping) or definition.get("type") not in FIELDS:
        kind = definition.get("type") if isinstance(definition, Mapping) else definition
        raise UserError(f"{where}: the grader type {kind!r} is unknown", f"use one of {', '.join(FIELDS)}")
    kind = definition["type"]
    for key in sorted(FIELDS[kind] - definition.keys()):
        raise UserError(f"{where}: a {kind} grader needs {key!r}", "add it")
    for key in sorted(definition.keys() - FIELDS[kind] - OPTIONAL):
        raise UserError(f"{where}: a {kind} grader has no {key!r}", f"remove it; it takes {sorted(FIELDS[kind])}")
    for key in ("input", "reference"):
        if key in definition:
            check_template(definition[key], f"{where}, {key}")
    if kind == "string_check" and definition["operation"] not in OPERATIONS:
        raise UserError(
            f"{where}: the operation {definition['operation']!r} is unknown", f"use {', '.join(OPERATIONS)}"
        )
    if kind == "text_similarity" and definition["evaluation_metric"] not in METRICS:
        raise UserError(
            f"{where}: the metric {definition['evaluation_metric']!r} is not built in", f"use {', '.join(METRICS)}"
        )
    if kind == "python" and not re.search(r"^def grade\(", definition["source"], re.MULTILINE):
        raise UserError(f"{where}: the source defines no grade", "define `def grade(sample, item) -> float`")
    if kind == "multi":
        for name, part in definition["graders"].items():
            if not IDENTIFIER.fullmatch(name):
                raise UserError(f"{where}: the name {name!r} cannot stand in a formula", "use letters, digits and _")
            check_definition(part, f"{where}, {name}")
        Formula(definition["calculate_output"], set(definition["graders"]), f"{where}, calculate_output")


class GraderSet:
    """Named graders; owns a sandbox that it starts when code is first graded."""

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]], workers: int = 2, seconds: float = 2.0) -> None:
        """Raises `UserError` for a definition that cannot be used."""
        for name, definition in definitions.items():
            check_definition(definition, f"The grader {name}")
        self.definitions = {name: dict(definition) for name, definition in definitions.items()}
        self._pool = SandboxPool(workers, seconds)

    @classmethod
    def from_defs(cls, definitions: Mapping[str, Mapping[str, Any]], workers: int = 2) -> GraderSet:
        """Graders from a dict of definitions."""
        return cls(definitions, workers)

    @classmethod
    def from_json(cls, path: Path, workers: int = 2) -> GraderSet:
        """Graders from `graders.json`."""
        definitions = read_json(path)
        if not isinstance(definitions, dict):
            raise UserError(f"{path} is not a JSON object", 'write {"name": {"type": ...}, ...}')
        return cls(definitions, workers)

    def __enter__(self) -> GraderSet:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox's processes."""
        self._pool.close()

    def uses_sandbox(self, names: Iterable[str]) -> bool:
        """Whether one of these graders runs code, and so takes its time in processes of its own."""
        return any(_runs_code(self.definitions[name]) for name in names if name in self.definitions)

    def grade(self, samples: Sequence[Sample], name: str | None = None) -> list[Grade]:
        """One grade per sample, in order: by the grader `name`, or each by its task's own.

        Raises `UserError` for a grader that is not in the set or a task that lacks what its grader reads.
        """
        names = [name or sample.task.grader for sample in samples]
        for wanted in sorted(set(names) - self.definitions.keys()):
            raise UserError(
                f"There is no grader {wanted!r} among {', '.join(sorted(self.definitions))}",
                "define it under `graders`, or change the `grader` of the tasks that name it",
            )
        grades: list[Grade | None] = [None] * len(samples)
        for wanted in sorted(set(names)):
            numbers = [number for number, other in enumerate(names) if other == wanted]
            found = self._grade(self.definitions[wanted], [samples[number] for number in numbers])
            for number, grade in zip(numbers, found, strict=True):
                grades[number] = grade
        return [grade for grade in grades if grade is not None]

    def _grade(self, definition: Mapping[str, Any], samples: Sequence[Sample]) -> list[Grade]:
        grades = [rejection(sample) for sample in samples]
        live = [sample for sample, grade in zip(samples, grades, strict=True) if grade is None]
        found = iter(self._grade_answers(definition, live) if live else [])
        return [next(found) if grade is None else grade for grade in grades]

    def _grade_answers(self, definition: Mapping[str, Any], samples: Sequence[Sample]) -> list[Grade]:
        kind = definition["type"]
        if kind in VERIFIERS:
            return [VERIFIERS[kind](sample) for sample in samples]
        if kind == "code_tests":
            return grade_code(samples, self._pool)
        if kind == "reasoning_gym":
            return grade_gym(samples, self._pool)
        if kind == "python":
            jobs: list[Job] = [
                python_job(definition["source"], sample_namespace(answer_of(s)), s.task.as_item()) for s in samples
            ]
            return [python_grade(result[0]) for result in self._pool.map(jobs)]
        if kind == "multi":
            parts = {name: self._grade_answers(part, samples) for name, part in definition["graders"].items()}
            formula = Formula(definition["calculate_output"], set(parts), "calculate_output")
            return [
                combine(formula, {name: grades[number] for name, grades in parts.items()})
                for number in range(len(samples))
            ]
        return [compare(definition, sample) for sample in samples]


def _runs_code(definition: Mapping[str, Any]) -> bool:
    parts = definition["graders"].values() if definition["type"] == "multi" else ()
    return definition["type"] in RUN_CODE or any(_runs_code(part) for part in parts)


def compare(definition: Mapping[str, Any], sample: Sample) -> Grade:
    """Grade of a string_check or text_similarity grader."""
    names = {"item": sample.task.as_item(), "sample": sample_namespace(answer_of(sample))}
    try:
        reference = render(definition["reference"], names)
    except MissingField as error:
        return Grade(None, evidence=f"the task has no {error}", flags=("grader_failed",))
    try:
        text = render(definition["input"], names)
    except MissingField as error:
        # The input names a part of the output that the policy did not write.
        if str(error).startswith("item."):
            return Grade(None, evidence=f"the task has no {error}", flags=("grader_failed",))
        return Grade(0.0, evidence=f"the output has no {error}")
    if definition["type"] == "string_check":
        right = OPERATIONS[definition["operation"]](text, reference)
        return Grade(float(right), evidence=f"{text[:40]!r} {definition['operation']} {reference[:40]!r}: {right}")
    return Grade(similarity(definition["evaluation_metric"], text, reference))


def combine(formula: Formula, parts: Mapping[str, Grade]) -> Grade:
    """Grade of a multi grader; None when a part could not be graded or the formula has no value in [0, 1]."""
    flags = tuple(sorted({flag for grade in parts.values() for flag in grade.flags}))
    values = {name: grade.score for name, grade in parts.items() if grade.score is not None}
    if len(values) < len(parts):
        missing = next(name for name, grade in parts.items() if grade.score is None)
        return Grade(None, evidence=f"{missing}: {parts[missing].evidence}", flags=flags)
    try:
        score = formula(values)
    except (ArithmeticError, ValueError) as error:
        return Grade(None, evidence=f"{formula.text}: {error}", flags=flags)
    # Weights such as 0.7 + 0.2 + 0.1 sum to a hair off 1.
    if not -1e-9 <= score <= 1 + 1e-9:
        return Grade(None, evidence=f"{formula.text} gives {score:.4g}, outside 0..1", flags=flags)
    evidence = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    return Grade(round(min(1.0, max(0.0, score)), 12), evidence=evidence, flags=flags)
