"""Arithmetic formulas over named numbers: `calculate_output` of multi graders, such as "0.8*exact + 0.2*style".

Operators + - * / ^ and the functions min, max, abs, floor, ceil, exp, sqrt, log. Nothing else is ever evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from loopline.base.errors import UserError

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


class Formula:
    """A formula that was checked when it was read."""

    def __init__(self, text: str, names: set[str], where: str) -> None:
        """Raises `UserError` for anything but arithmetic over `names`."""
        self.text, self.where = text, where
        try:
            self.tree = ast.parse(text.replace("^", "**"), mode="eval").body
        except SyntaxError as error:
            raise UserError(
                f"{where}: the formula {text!r} is not arithmetic", "write e.g. 0.8*exact + 0.2*style"
            ) from error
        self._check(self.tree, names)

    def _check(self, node: ast.AST, names: set[str]) -> None:
        parts: list[ast.expr] | None = None
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                parts = []
            case ast.Name(id=name) if name in names:
                parts = []
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                parts = [left, right]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                parts = [operand]
            case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in FUNCTIONS:
                parts = arguments
        if parts is None:
            raise UserError(
                f"{self.where}: the formula {self.text!r} holds {ast.unparse(node)!r}",
                f"use numbers, + - * / ^, {', '.join(FUNCTIONS)} and the graders {', '.join(sorted(names))}",
            )
        for part in parts:
            self._check(part, names)

    def __call__(self, values: Mapping[str, float]) -> float:
        """The value. Raises `ArithmeticError` or `ValueError` where it has none, as in 1/0."""
        result = self._value(self.tree, values)
        if isinstance(result, complex) or not math.isfinite(result):
            raise ArithmeticError(f"{self.text} has no finite value")
        return float(result)

    def _value(self, node: ast.AST, values: Mapping[str, float]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left=left, op=op, right=right):
                return BINARY[type(op)](self._value(left, values), self._value(right, values))
            case ast.UnaryOp(operand=operand):
                return -self._value(operand, values)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return FUNCTIONS[name](*(self._value(argument, values) for argument in arguments))
        raise TypeError(f"unchecked node {ast.dump(node)}")
