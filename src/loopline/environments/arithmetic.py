"""Find the first wrong step in written arithmetic.

    wrong_step("<think>3*4=11;11+2=13</think>13")      # (11, '12'): where the wrong value starts, and the right one

A step is `expression=value` with numbers and operators only. Not covered: steps with names, units or rounding (a value
is wrong only when it differs by more than its last written digit).
"""

from __future__ import annotations

import re
from fractions import Fraction

from loopline.environments.calculator import CalculatorError, evaluate, write_number

STEP = re.compile(r"([\d(][\d+\-*/%(). ]*[\d)])\s*=\s*(-?\d+(?:\.\d+)?)(?![\d.]*[+\-*/%]|\w)")
OPERATOR = re.compile(r"[\d)]\s*[+\-*/%]")


def wrong_step(text: str, start: int = 0) -> tuple[int, str] | None:
    """(position of the wrong value, right value) of the first wrong step whose value begins at `start` or later."""
    for match in STEP.finditer(text):
        if match.start(2) < start or not OPERATOR.search(match.group(1)):
            continue
        try:
            value = evaluate(match.group(1))
            right = write_number(value)
        except CalculatorError:
            continue
        written = match.group(2)
        digits = len(written.partition(".")[2])
        allowed = Fraction(1, 10**digits) if digits else Fraction(0)
        if abs(Fraction(written) - value) > allowed:
            return match.start(2), right
    return None
