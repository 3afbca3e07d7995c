"""Exact arithmetic on untrusted text, without `eval`.

    calculate("2*(3+4)")        # '14'
    calculate("7/2")            # '3.5'

Grammar: `+ - * / // %`, `**`, unary minus and plus, parentheses, whole and decimal numbers; precedence as in Python.
Values are rationals, so 0.1+0.2 is 0.3. Not covered: functions, names, complex results, numbers above 300 digits.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH = 200
MAX_BITS = 1000
TOKEN = re.compile(r"\s*(?:(\d+\.\d+|\d+|\.\d+)|(\*\*|//|[-+*/%()]))")


class CalculatorError(ValueError):
    """The text is not arithmetic, or its value cannot be given."""


def calculate(expression: str) -> str:
    """The value of `expression` as text: an integer where exact, else up to ten significant decimals.

    Raises `CalculatorError` with a sentence that says what is wrong.
    """
    return write_number(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """The exact value of `expression`. Raises `CalculatorError`."""
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"the expression is longer than {MAX_LENGTH} characters")
    parser = _Parser(_tokens(expression))
    value = parser.sum()
    if parser.peek is not None:
        raise CalculatorError(f"unexpected {parser.peek!r}")
    return value


def write_number(value: Fraction) -> str:
    """`value` as a decimal, without trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.10g}"
    except OverflowError as error:
        raise CalculatorError("the value is too large") from error


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if not match:
            raise CalculatorError(f"unexpected {text[position:].strip()[:1]!r}")
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    if not tokens:
        raise CalculatorError("the expression is empty")
    return tokens


class _Parser:
    """Recursive descent; one method per level of precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    @property
    def peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> str:
        token = self.peek
        if token is None:
            raise CalculatorError("the expression ends too early")
        self.position += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return _bounded(value)

    def product(self) -> Fraction:
        value = self.unary()
        while self.peek in ("*", "/", "//", "%"):
            operator, right = self.take(), self.unary()
            if operator != "*" and right == 0:
                raise CalculatorError("division by zero")
            if operator == "*":
                value *= right
            elif operator == "/":
                value /= right
            elif operator == "//":
                value = Fraction(value // right)
            else:
                value %= right
            _bounded(value)
        return value

    def unary(self) -> Fraction:
        if self.peek == "-":
            self.take()
            return -self.unary()
        if self.peek == "+":
            self.take()
            return self.unary()
        return self.power()

    def power(self) -> Fraction:
        base = self.atom()
        if self.peek != "**":
            return base
        self.take()
        exponent = self.unary()
        if exponent.denominator != 1:
            raise CalculatorError("a power must be a whole number")
        if base == 0 and exponent < 0:
            raise CalculatorError("division by zero")
        size = max(abs(base.numerator), base.denominator).bit_length() * abs(exponent.numerator)
        if abs(base) != 1 and size > MAX_BITS:
            raise CalculatorError("the value is too large")
        return base ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2)

    def atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.sum()
            if self.peek != ")":
                raise CalculatorError("a parenthesis is not closed")
            self.take()
            return value
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token)
        raise CalculatorError(f"unexpected {token!r}")


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > MAX_BITS:
        raise CalculatorError("the value is too large")
    return value
