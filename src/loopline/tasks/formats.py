"""Readers of the task files people have: rows of a known form become prompts with answers, items and a grader.

    form = form_of(table, None, {})                # by name, by columns the recipe names, or by the file's columns
    for number, row in enumerate(table.rows):
        reading = form.read(row, table.place(number))

GSM8K (Cobbe et al. 2021), MATH (Hendrycks et al. 2021), HumanEval (Chen et al. 2021), MBPP (Austin et al. 2021),
multiple choice as in ARC (Clark et al. 2018) and MMLU (Hendrycks et al. 2020), instructions as in IFEval (Zhou et al.
2023). Chat rows and plain columns are read by `tasks.layouts`. Not covered: images, few-shot examples in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.base.errors import UserError
from loopline.tasks.files import Row, Table

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CALCULATION = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations, which are no part of the text."""


@dataclass(frozen=True)
class Reading:
    """What one row says."""

    prompt: str
    answer: str = ""
    solution: str = ""
    """A whole answer as an assistant would write it, where the data has one."""
    item: Row = field(default_factory=dict)
    """What the grader reads beside the answer."""
    id: str | None = None


@dataclass(frozen=True)
class Form:
    """One known form of rows."""

    name: str
    columns: tuple[frozenset[str], ...]
    """Columns that tell the form, one set of them enough."""
    read: Callable[[Row, str], Reading]
    grader: str
    template: str = "{prompt}"
    tells: Callable[[Row], bool] = lambda row: True
    """Whether a row with those columns is of this form."""


def text_of(row: Mapping[str, Any], name: str, place: str) -> str:
    """A column that must hold text. Raises `UserError`."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: {name!r} holds {value!r:.60} instead of text", "fill it in, or remove the row")
    return value


def named(row: Mapping[str, Any], *names: str) -> str | None:
    """The row's own id, from the first column that has one."""
    return next((str(row[name]) for name in names if isinstance(row.get(name), str | int)), None)


def gsm8k(row: Row, place: str) -> Reading:
    """question, answer: a worked solution that ends in `#### number`."""
    worked = CALCULATION.sub("", text_of(row, "answer", place))
    final = worked.rpartition("####")[2].strip()
    if "####" not in worked or not final:
        raise UserError(f"{place}: the answer has no `#### number`", "end it with the final number, or set `format`")
    return Reading(text_of(row, "question", place), final, worked)


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` or `\\fbox{...}`, braces balanced; None when there is none."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("{")
    if rest[0].strip() not in ("\\boxed", "\\fbox"):
        # `\boxed 7` is written now and then.
        found = re.match(r"\\f?box(?:ed)?\s+([^\s$]+)", text[start:])
        return found[1] if found else None
    depth, inside = 1, rest[2]
    for position, sign in enumerate(inside):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return inside[:position].strip()
    return None


def math(row: Row, place: str) -> Reading:
    """problem, solution: worked, with the answer in `\\boxed{}`; an `answer` column goes before it."""
    solution = text_of(row, "solution", place)
    answer = row["answer"] if isinstance(row.get("answer"), str) and row["answer"].strip() else boxed(solution)
    if not answer:
        raise UserError(f"{place}: the solution has no \\boxed answer", "add it, or an `answer` column")
    item = {name: row[name] for name in ("level", "type", "subject") if row.get(name) is not None}
    return Reading(text_of(row, "problem", place), answer, solution, item, named(row, "unique_id"))


def humaneval(row: Row, place: str) -> Reading:
    """task_id, prompt (a function's head), entry_point, canonical_solution (its body), test (`check(candidate)`)."""
    head, entry = text_of(row, "prompt", place), text_of(row, "entry_point", place)
    body = row.get("canonical_solution")
    body = body if isinstance(body, str) else ""
    tests = [f"{text_of(row, 'test', place)}\ncheck({entry})"]
    item = {"entry": entry, "head": head, "setup": head, "tests": tests}
    solution = f"```python\n{head}{body}\n```" if body.strip() else ""
    return Reading(head, body, solution, item, named(row, "task_id"))


def mbpp(row: Row, place: str) -> Reading:
    """text or prompt, code, test_list (assertions), and test_setup_code or test_imports."""
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise UserError(f"{place}: 'test_list' is no list of assertions", "write one `assert ...` per entry")
    imports = row.get("test_imports")
    setup = "\n".join(imports) if isinstance(imports, list) else str(row.get("test_setup_code") or "")
    code = row.get("code") if isinstance(row.get("code"), str) else ""
    entries = re.findall(r"^(?:def|class)\s+(\w+)", str(code), re.MULTILINE)
    used = [name for name in entries if re.search(rf"\b{name}\b", " ".join(tests))]
    prompt = text_of(row, "text" if "text" in row else "prompt", place).strip()
    prompt += "\nYour code should pass these tests:\n" + "\n".join(tests)
    item = {"entry": used[-1] if used else "", "setup": setup, "tests": tests}
    return Reading(prompt, str(code), f"```python\n{code}\n```" if code else "", item, named(row, "task_id"))


def options(question: str, labels: Sequence[str], texts: Sequence[str]) -> str:
    """A question with its choices, one per line."""
    return "\n".join([question.strip(), *(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))])


def chosen(
    question: str, labels: Sequence[str], texts: Sequence[Any], right: str, name: str | None, place: str
) -> Reading:
    """A multiple-choice row. Raises `UserError` when the right label is none of the labels."""
    if len(labels) != len(texts) or len(labels) < 2 or right not in labels:
        raise UserError(
            f"{place}: {len(texts)} choices with the labels {', '.join(labels)}, of which {right!r} is to be right",
            "give every choice a label, and the label of the right one",
        )
    # Some rows of ARC are labelled with digits; letters are what the prompt asks for.
    letters = list(LETTERS[: len(labels)])
    words = [str(text) for text in texts]
    answer = letters[labels.index(right)]
    return Reading(
        options(question, letters, words), answer, answer, {"choices": dict(zip(letters, words, strict=True))}, name
    )


def arc(row: Row, place: str) -> Reading:
    """question, choices {"text", "label"}, answerKey; or question {"stem", "choices": [{"text", "label"}]}."""
    question, choices = row.get("question"), row.get("choices")
    if isinstance(question, dict):
        listed = question.get("choices") or []
        choices = {name: [one.get(name) for one in listed] for name in ("text", "label")}
        question = question.get("stem")
    if not isinstance(question, str) or not isinstance(choices, dict):
        raise UserError(f"{place}: no question with choices", 'write {"question", "choices": {"text", "label"}}')
    labels = [str(label) for label in choices.get("label") or ()]
    return chosen(question, labels, choices.get("text") or (), str(row.get("answerKey")), named(row, "id"), place)


def mmlu(row: Row, place: str) -> Reading:
    """question, choices (a list), answer (the number of the right one, or its letter); or columns A, B, C, D."""
    texts = row.get("choices")
    if texts is None:
        texts = [row[letter] for letter in LETTERS if row.get(letter) is not None]
    if not isinstance(texts, list):
        raise UserError(f"{place}: 'choices' is no list", "write the choices as a list of texts")
    right = row.get("answer")
    if isinstance(right, int) or (isinstance(right, str) and right.isdigit()):
        right = LETTERS[int(right)] if int(right) < len(texts) else str(right)
    reading = chosen(text_of(row, "question", place), list(LETTERS[: len(texts)]), texts, str(right), None, place)
    subject = {"subject": row["subject"]} if row.get("subject") else {}
    return Reading(reading.prompt, reading.answer, reading.solution, {**reading.item, **subject})


def ifeval(row: Row, place: str) -> Reading:
    """key, prompt, instruction_id_list, kwargs (one object per instruction)."""
    names, settings = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not isinstance(settings, list) or len(names) != len(settings) or not names:
        raise UserError(
            f"{place}: instruction_id_list and kwargs do not match", "give one object of kwargs per instruction"
        )
    checks = [
        {"instruction": name, **{key: value for key, value in (given or {}).items() if value is not None}}
        for name, given in zip(names, settings, strict=True)
    ]
    return Reading(text_of(row, "prompt", place), item={"instructions": checks}, id=named(row, "key"))


CHOICE = "{prompt}\nAnswer with the letter of the right choice."
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(
            "humaneval", (frozenset({"prompt", "entry_point", "test"}),), humaneval, "code_tests",
            "Complete this Python function. Answer with the whole function in one code block.\n```python\n{prompt}```",
        ),
        Form("mbpp", (frozenset({"text", "test_list"}), frozenset({"prompt", "test_list"})), mbpp, "code_tests"),
        Form("ifeval", (frozenset({"prompt", "instruction_id_list", "kwargs"}),), ifeval, "instructions"),
        Form("arc", (frozenset({"question", "answerKey"}),), arc, "choice", CHOICE),
        Form(
            "mmlu", (frozenset({"question", "choices", "answer"}), frozenset({"question", "A", "B", "answer"})),
            mmlu, "choice", CHOICE,
        ),
        Form(
            "math", (frozenset({"problem", "solution"}),), math, "math",
            "{prompt}\nPut the final answer in \\boxed{}.", lambda row: "\\boxed" in str(row["solution"]),
        ),
        Form(
            "gsm8k", (frozenset({"question", "answer"}),), gsm8k, "gsm8k",
            "{prompt}\nEnd with the final number after ####.", lambda row: "####" in str(row["answer"]),
        ),
    )
}  # fmt: skip


def form_of(table: Table, name: str | None, columns: Mapping[str, str]) -> Form | None:
    """The known form of a file's rows: the one named, else none where columns are named, else the first that fits.

    None means chat rows and plain columns. Raises `UserError` when the file lacks the named form's columns.
    """
    if name in ("chat", "columns") or (name is None and columns):
        return None
    if name is None:
        first = table.rows[0]
        fitting = (form for form in FORMS.values() if any(wanted <= first.keys() for wanted in form.columns))
        return next((form for form in fitting if form.tells(first)), None)
    form = FORMS[name]
    if not any(wanted <= set(table.columns) for wanted in form.columns):
        wanted = "; or ".join(", ".join(sorted(one)) for one in form.columns)
        raise UserError(
            f"{table.name} has the columns {', '.join(table.columns)}, but rows of the form {name} have {wanted}",
            "rename the columns, or leave `format` out and name `prompt` and `answer`",
        )
    return form
