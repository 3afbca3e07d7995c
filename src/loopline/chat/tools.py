"""Tools: what a policy may call, with arguments checked against a JSON schema.

    tool = Tool(
        name="search",
        description="Find documents.",
        parameters={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        function=lambda arguments: ToolResult(text="..."),
    )
    tool.call({"query": "blue lamp"}).text

A bad call is the policy's doing, so it comes back as text starting with `Error:` for the policy to read; a defect of
the tool itself is an exception and stops the run. Schemas: objects of strings, integers, numbers and booleans, as in
the function tools of the OpenAI API. Not covered: nested schemas, tools that change shared state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
MARK = re.compile(r"<(?=\||/?think>|/?tool_call>)")


class CallError(Exception):
    """A call the policy got wrong; its text is shown to the policy."""


@dataclass(frozen=True)
class ToolResult:
    """What a call gave back."""

    text: str
    """What the policy reads."""
    ok: bool = True
    """False when the call was wrong."""
    empty: bool = False
    """True when the call was right and found nothing."""


@dataclass(frozen=True)
class Tool:
    """One function a policy may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments."""
    function: Callable[[Mapping[str, Any]], ToolResult]
    """Runs the call; raises `CallError` when the arguments make no sense. Must give equal results for equal calls."""

    def schema(self) -> dict[str, Any]:
        """The tool in the OpenAI function format."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with `arguments`, or None."""
        properties = self.parameters.get("properties", {})
        for name in self.parameters.get("required", []):
            if name not in arguments:
                return f"{self.name} needs the argument {name}"
        for name, value in arguments.items():
            if name not in properties:
                return f"{self.name} has no argument {name}"
            kind = properties[name].get("type", "string")
            # bool is an int in Python, but not in JSON.
            if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
                return f"{self.name}: {name} must be of type {kind}"
        return None

    def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Check the arguments and run. A wrong call gives a result with `ok=False`, never an exception."""
        problem = self.problem(arguments)
        if problem is not None:
            return error_result(problem)
        try:
            return self.function(arguments)
        except CallError as error:
            return error_result(str(error))


def error_result(text: str) -> ToolResult:
    """The result that tells the policy what it did wrong."""
    return ToolResult(text=f"Error: {text}", ok=False)


def as_plain_text(text: str) -> str:
    """`text` with special tokens broken up, so that a document cannot pass for a turn of the conversation."""
    return MARK.sub("< ", text)
