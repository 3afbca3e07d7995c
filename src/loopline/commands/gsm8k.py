"""Grader for GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the number after `####`, or the last number.

    loopline grpo --grader gsm8k --columns prompt=question ...

This file is the grader's source: it runs in the sandbox and imports nothing of the project. An answer with several
`####`, or a last line that is a list of numbers rather than a sentence, states no one answer and earns nothing.
"""

import re

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
WORD = re.compile(r"[^\W\d_]+")


def value(text: str) -> float | None:
    """The number that a piece of text is; None when it is none."""
    number = float(text.replace(",", ""))
    return number if abs(number) < 1e15 else None


def stated(text: str) -> float | None:
    """The number that an answer states; None when it states none, or several."""
    before, mark, after = text.partition("####")
    if mark:
        numbers = NUMBER.findall(after)
        return value(numbers[0]) if len(numbers) == 1 else None
    lines = [line for line in before.splitlines() if line.strip()]
    numbers = NUMBER.findall(lines[-1]) if lines else []
    # In "16 - 3 = 13 eggs" the sum leads to its result; in "1 2 3 4" nothing leads anywhere.
    told = len(numbers) == 1 or "=" in lines[-1] or len(WORD.findall(lines[-1])) >= len(numbers) if numbers else False
    return value(numbers[-1]) if told else None


def grade(sample: dict[str, str], item: dict[str, object]) -> float:
    right = stated(str(item["answer"]))
    if right is None:
        raise ValueError("the reference answer of this item states no number")
    # A question that is copied ends in a number, too, now and then the right one.
    prompt = str(item.get("prompt") or "")
    found = stated(sample["output_text"].replace(prompt, "") if prompt else sample["output_text"])
    return float(found is not None and abs(found - right) < 1e-6)
