"""Verifiers of stated answers: a number (GSM8K), a mathematical expression (MATH), a letter (multiple choice).

Each finds the one answer that a text states, brings it and the reference into a normal form, and compares. A text that
states several answers states none: a list of candidates would else score now and then. Not covered: equality that needs
algebra (`x(x+1)` and `x^2+x` differ here).
"""

from __future__ import annotations

import re
from fractions import Fraction

from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.tasks.formats import boxed
from loopline.text.words import words_of

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
WORD = re.compile(r"[^\W\d_]+")
LONGEST = 20_000
"""Characters of an answer that are looked at, from its end."""


def answer_text(sample: Sample) -> str:
    """The text after thinking without a copy of the question, whose last number is now and then the right one."""
    answer = (split_thinking(sample.text)[1] or "")[-LONGEST:]
    return answer.replace(sample.task.prompt, "") if sample.task.prompt else answer


def verdict(stated: str | None, right: bool, expected: str) -> Grade:
    """The grade of an answer that states `stated`."""
    if stated is None:
        return Grade(0.0, evidence="states no one answer", flags=("no_answer",))
    return Grade(float(right), evidence=f"answered {stated[:40]!r}, expected {expected[:40]!r}")


# --- a number


def stated_number(text: str) -> str | None:
    """The number after `####`, else the last one of the last line; None when there is none, or several.

    In "16 - 3 = 13 eggs" the sum leads to its result; in "1 2 3 4" nothing leads anywhere.
    """
    before, mark, after = text.partition("####")
    if mark:
        numbers = NUMBER.findall(after)
        return numbers[0] if len(numbers) == 1 else None
    lines = [line for line in before.splitlines() if line.strip()]
    numbers = NUMBER.findall(lines[-1]) if lines else []
    if not numbers:
        return None
    leads = len(numbers) == 1 or "=" in lines[-1] or len(WORD.findall(lines[-1])) >= len(numbers)
    return numbers[-1] if leads else None


def gsm8k(sample: Sample) -> Grade:
    """1 when the number after `####`, or the last number, is the reference's."""
    right = stated_number(sample.task.answer)
    if right is None:
        return Grade(None, evidence="the reference answer states no number", flags=("grader_failed",))
    found = stated_number(answer_text(sample))
    same = found is not None and Fraction(found.replace(",", "")) == Fraction(right.replace(",", ""))
    return verdict(found, same, right)


# --- a mathematical expression

SAYS = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
DROPPED = (
    "\\left", "\\right", "\\!", "\\,", "\\;", "\\:", "\\ ", "\\$", "$", "\\%", "%",
    "\\displaystyle", "^\\circ", "^{\\circ}", "~",
)  # fmt: skip
"""Spacing, sizing and units that change no value."""
REPLACED = (
    ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\cfrac", "\\frac"), ("\\cdot", "*"), ("\\times", "*"),
    ("\\{", "{"), ("\\}", "}"), ("\\le ", "\\leq "), ("\\ge ", "\\geq "), ("−", "-"), ("\\infty", "oo"), ("\\pi", "pi"),
)  # fmt: skip
TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|operatorname)\s*\{([^{}]*)\}")
SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
FRACTION = re.compile(r"\\frac\{([^{}]+)\}\{([^{}]+)\}")
SHORT_ROOT = re.compile(r"\\sqrt\s*(\w)")
ROOT = re.compile(r"\\sqrt\{([^{}]+)\}")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
MIXED = re.compile(r"(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:/[-+]?\d+(?:\.\d*)?)?")


def stated_expression(text: str) -> str | None:
    """The last boxed expression, else what follows "the answer is", else the whole text when it is one short line."""
    found = boxed(text)
    if found is not None:
        return found
    *_, last = SAYS.split(text)
    if last != text:
        line = last.strip().split("\n")[0].strip()
        return line.rstrip(".") or None
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1].rstrip(".") if len(lines) == 1 and len(lines[0]) <= 80 else None


def normal_math(text: str) -> str:
    """An expression in a form of its own: equal values of numbers and fractions, and equal spellings, are equal."""
    text = text.strip().strip("`*").removeprefix("\\(").removesuffix("\\)")
    for old, new in REPLACED:
        text = text.replace(old, new)
    text = MIXED.sub(lambda m: f"{m[1]}{int(m[2]) * int(m[4]) + int(m[3])}/{int(m[4])}" if int(m[4]) else m[0], text)
    # Units in words fall away beside a number; words that are the answer stay.
    bare = TEXT.sub("", text)
    text = bare if re.search(r"[\d\\]", bare) else TEXT.sub(r"\1", text)
    for drop in DROPPED:
        text = text.replace(drop, "")
    text = SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    for _ in range(4):  # nested fractions, from the inside out
        text = FRACTION.sub(_divided, ROOT.sub(r"sqrt(\1)", text))
    text = THOUSANDS.sub("", re.sub(r"\s+", "", text))
    if re.fullmatch(r"[A-Za-z]\w?=[^=]+", text):  # `x=5` answers what x is
        text = text.partition("=")[2]
    text = text.rstrip(".,;").lower()
    parts = _listed(text)
    if parts is not None:
        opened, inside, closed = parts
        return opened + ",".join(normal_math(part) for part in inside) + closed
    return _value(text)


def _divided(match: re.Match[str]) -> str:
    top, bottom = (part if re.fullmatch(r"\w+|\w+\.\w+", part) else f"({part})" for part in match.groups())
    return f"{top}/{bottom}"


def _listed(text: str) -> tuple[str, list[str], str] | None:
    """(bracket, parts, bracket) of a tuple, interval, set or list; None for anything else."""
    opened, closed = (text[:1], text[-1:]) if text[:1] in "([{" and text[-1:] in ")]}" and len(text) > 2 else ("", "")
    inside = text[1:-1] if opened else text
    depth, parts = 0, [""]
    for sign in inside:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return None
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    if len(parts) < 2 or not all(parts):
        return None
    return opened, sorted(parts) if opened in ("{", "") else parts, closed


def _value(text: str) -> str:
    """A number as the fraction that it is; other text without superfluous brackets."""
    plain = text.replace("(", "").replace(")", "") if text.count("(") == text.count("/") + text.count("-(") else text
    if PLAIN.fullmatch(plain) and len(plain) <= 40:
        top, _, bottom = plain.partition("/")
        if not bottom or Fraction(bottom):
            return str(Fraction(top) / (Fraction(bottom) if bottom else 1))
    return text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text


def math(sample: Sample) -> Grade:
    """1 when the expression stated has the normal form of the reference."""
    right = boxed(sample.task.answer) or sample.task.answer
    if not right.strip():
        return Grade(None, evidence="there is no reference answer", flags=("grader_failed",))
    found = stated_expression(answer_text(sample))
    return verdict(found, found is not None and normal_math(found) == normal_math(right), right)


# --- a letter

ALONE = re.compile(r"[\s*_`(\[$]*([A-Za-z])[\s*_`)\]$.:]*")
LEADS = re.compile(r"[\s*_`(\[]*([A-Z])[*_`)\].:]+\s+(.+)", re.DOTALL)
STATES = re.compile(
    r"(?i:answer|choice|option)(?:\s+(?:is|should be|must be|would be))?\s*:?\s*[*_`(\[]*([A-Z])\b(?![a-z'])"
)


def stated_choice(text: str, choices: dict[str, str]) -> str | None:
    """The one label that a text states: alone, boxed, after "answer", or with its choice; None for none or several."""
    found = boxed(text)
    text = found if found is not None else text.strip()
    inner = re.fullmatch(r"\\text\{(.*)\}", text)
    text = inner[1] if inner else text
    alone = ALONE.fullmatch(text)
    if alone:
        return alone[1].upper() if alone[1].upper() in choices else None
    stated = {label for label in STATES.findall(text) if label in choices}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    leads = LEADS.fullmatch(text)
    if leads and leads[1] in choices and not re.search(r"(?<!\w)[(\[]?[A-Z][)\].:]\s", leads[2]):
        return leads[1]
    same = [label for label, choice in choices.items() if words_of(choice) == words_of(text)]
    return same[0] if len(same) == 1 else None


def choice(sample: Sample) -> Grade:
    """1 when the letter stated is the reference's; the words of a choice count as its letter."""
    choices = sample.task.item.get("choices")
    right = sample.task.answer.strip()
    labels = dict(choices) if isinstance(choices, dict) else dict.fromkeys("ABCDEFGHIJ", "")
    if right not in labels:
        return Grade(None, evidence=f"the reference {right!r} is no label of a choice", flags=("grader_failed",))
    found = stated_choice(answer_text(sample), labels)
    return verdict(found, found == right, right)
