"""Arithmetic agrees with Python's own on random expressions, and refuses everything else."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.environments.arithmetic import wrong_step
from loopline.environments.calculator import CalculatorError, calculate, evaluate

numbers = st.integers(0, 60).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "/"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
        st.tuples(inner.map(lambda text: f"({text})"), st.sampled_from(["0", "1", "2", "3"])).map("**".join),
    ),
    max_leaves=8,
)


def python_value(expression: str) -> Fraction:
    """The reference: Python's own parser, with every number a rational."""
    import ast

    tree = ast.parse(expression, mode="eval")

    class Exact(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Call(ast.Name("Fraction", ast.Load()), [node], [])

    tree = ast.fix_missing_locations(Exact().visit(tree))
    return Fraction(eval(compile(tree, "", "eval"), {"Fraction": Fraction}))  # exponents stay whole: a Fraction of 2


def outcome(expression: str) -> Fraction | str:
    """The value, or the sentence that refuses it."""
    try:
        return evaluate(expression)
    except CalculatorError as error:
        return str(error)


@given(expressions)
def test_agrees_with_python(expression: str) -> None:
    try:
        expected: Fraction | str = python_value(expression)
    except ZeroDivisionError:
        expected = "division by zero"
    found = outcome(expression)
    if isinstance(found, str) and ("too large" in found or "longer than" in found):
        # A bound, which Python does not have: it must only be met by large numbers or long texts.
        big = isinstance(expected, str) or max(abs(expected.numerator), expected.denominator) > 10**6
        assert big or "**" in expression or len(expression) > 200
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7/2", "3.5"), ("0.1+0.2", "0.3"), ("-2**2", "-4")]
    + [("2**-1", "0.5"), ("2**3**2", "512"), ("2/3", "0.6666666667")],
)
def test_writes_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "2+", "(1", "1)", "__import__('os')", "1 2", "a+1", "9**9**9", "1/0", "0**-1", "2**0.5", "1e5", "1" * 300],
)
def test_refuses(expression: str) -> None:
    with pytest.raises(CalculatorError):
        calculate(expression)


@given(st.text(max_size=60))
def test_any_text_gives_a_value_or_a_sentence(text: str) -> None:
    assert outcome(text) != ""


@given(st.integers(0, 99), st.integers(1, 99), st.sampled_from("+-*"), st.integers(-3, 3))
def test_wrong_step_finds_exactly_the_wrong_values(a: int, b: int, operator: str, error: int) -> None:
    right = int(calculate(f"{a}{operator}{b}"))
    text = f"<think>1+1=2;{a}{operator}{b}={right + error}</think>{right}"
    expected = None if error == 0 else (text.index(f"={right + error}<") + 1, str(right))
    assert wrong_step(text) == expected
