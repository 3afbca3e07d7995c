"""Calls as Python in a fenced block, the form that Gemma is prompted for: "```tool_code" and `search(query="lamp")`.

Several calls are written one a line, in a list, or in several blocks; `print(...)` around one is allowed. A block may
also hold JSON, `{"name": ..., "parameters": {...}}`, and so may a "```json" block where tools are offered. Not covered:
code that does more than call, with more than literals (reported as malformed).
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Sequence
from typing import Any, ClassVar

from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas, load_values, to_call

CODE, JSON, CLOSE = "```tool_code", "```json", "\n```"
JSON_NAMES = {"true": True, "false": False, "null": None}


class Gemma(CallForm):
    """Python in a fenced block."""

    name: ClassVar[str] = "gemma"
    opens: ClassVar[tuple[str, ...]] = (CODE,)
    opens_first: ClassVar[tuple[str, ...]] = (JSON,)
    tags: ClassVar[tuple[str, ...]] = ("```",)

    def end(self, text: str, final: bool) -> int | None:
        at = text.find(CLOSE)
        return at + len(CLOSE) if at >= 0 else len(text) if final else None

    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        coded = section.startswith(CODE)
        if not section.endswith(CLOSE):
            if coded:
                raise Malformed("the block does not end")
            return []
        body = section.removeprefix(CODE).removeprefix(JSON).removesuffix(CLOSE).strip()
        values, rest = load_values(body)
        if values and not rest:
            items = values[0] if len(values) == 1 and isinstance(values[0], list) else values
            meant = [isinstance(item, dict) and {"name", "parameters"} <= set(item) for item in items]
            if items and (coded or all(meant)):
                return [to_call(item, "parameters", "arguments") for item in items]
        return _read_python(body, tools) if coded else []

    def write(self, calls: Sequence[Call]) -> str:
        if all(_is_python(call) for call in calls):
            lines = [f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in calls]
        else:
            lines = [self.dumps({"name": call.name, "parameters": call.arguments}) for call in calls]
        return "\n".join([CODE, *lines, "```"])


def _is_python(call: Call) -> bool:
    """Whether Python can write it: its names are identifiers. Literals never begin a line, so no fence ends early."""
    names = [*call.name.split("."), *call.arguments]
    return all(name.isidentifier() and name.isascii() and not keyword.iskeyword(name) for name in names)


def _read_python(body: str, tools: Schemas | None) -> list[Call]:
    try:
        statements = ast.parse(body).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"not Python: {error}") from error
    calls = []
    for statement in statements:
        if not isinstance(statement, ast.Expr):
            raise Malformed("a statement that is no call")
        value = statement.value
        calls += [
            _read_call(item, tools) for item in (value.elts if isinstance(value, ast.List | ast.Tuple) else [value])
        ]
    if not calls:
        raise Malformed("an empty block")
    return calls


def _read_call(node: ast.expr, tools: Schemas | None) -> Call:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and len(node.args) == 1
    ):
        node = node.args[0]
    if not isinstance(node, ast.Call):
        raise Malformed("no call")
    name = ast.unparse(node.func)
    properties = list(((tools or {}).get(name) or {}).get("properties", {}))
    if len(node.args) > len(properties) or any(item.arg is None for item in node.keywords):
        raise Malformed(f"arguments of {name} without a name")
    arguments = {key: _literal(value) for key, value in zip(properties, node.args, strict=False)}
    return Call(name, {**arguments, **{str(item.arg): _literal(item.value) for item in node.keywords}})


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in JSON_NAMES:
        return JSON_NAMES[node.id]
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"{ast.unparse(node)[:40]} is no literal") from error
