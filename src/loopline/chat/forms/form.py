"""What a form of tool calls is: how a model family writes calls as text, and how they are read back.

    form = Hermes()
    text = form.write([Call("search", {"query": "lamp"})])
    form.read(text, schemas(tools))                    # [Call("search", {"query": "lamp"})]

A form says where a section of calls may begin in an answer, where it ends, and what it holds. `chat.parser` finds the
sections while the text arrives; `chat.forms.detect` says which form a chat template has. Not covered: reading what is
not quite in form (see `chat.repair`).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loopline.base.errors import UserError

Schemas = Mapping[str, Mapping[str, Any]]
"""JSON schemas of the arguments, by the tool's name."""
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Call:
    """One tool call."""

    name: str
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal for calls that ask the same."""
        return json.dumps([self.name, self.arguments], sort_keys=True)


class Malformed(Exception):
    """A section that means to call a tool and is not in form; says what is wrong with it."""


class CallForm(ABC):
    """One form of tool calls."""

    name: ClassVar[str]
    opens: ClassVar[tuple[str, ...]]
    """Texts with which a section of calls begins, anywhere in an answer."""
    opens_first: ClassVar[tuple[str, ...]] = ()
    """Texts that also begin one, at the beginning of an answer only, and only where tools are offered."""
    tags: ClassVar[tuple[str, ...]]
    """Texts that no argument may hold as they are."""
    strays: ClassVar[tuple[str, ...]] = ()
    """Tags that mean a call wherever they are: left over in the content they make it malformed."""

    @abstractmethod
    def end(self, text: str, final: bool) -> int | None:
        """Length of the section that `text` begins with; None when it goes on in text to come, 0 when it is none.

        With `final` nothing comes any more. What is returned must not depend on more of `text` than its section.
        """

    @abstractmethod
    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        """The calls of a section; none when it is ordinary text after all. Raises `Malformed`."""

    @abstractmethod
    def write(self, calls: Sequence[Call]) -> str:
        """The text of calls. Raises `UserError` for what the form cannot write."""

    def write_after(self, words: str, calls: Sequence[Call]) -> str:
        """The text of an answer that says something before its calls."""
        return f"{words}\n{self.write(calls)}" if words else self.write(calls)

    def instructions(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The system text that offers tools, for chat templates with no place for them."""
        listed = "\n".join(dumps(tool.get("function", tool)) for tool in tools)
        sample = self.write([Call("NAME", {"ARGUMENT": "VALUE"})])
        return f"You may call these tools:\n{listed}\nTo call one, answer with the call alone, in this form:\n{sample}"

    def dumps(self, value: object) -> str:
        """JSON that holds none of the form's tags: their first character is escaped."""
        text = dumps(value)
        for tag in self.tags:
            text = text.replace(tag, f"\\u{ord(tag[0]):04x}{tag[1:]}")
        return text


def dumps(value: object) -> str:
    """JSON as the templates write it."""
    return json.dumps(value, ensure_ascii=False)


def load_call(body: str, *keys: str) -> Call:
    """A call from a JSON object with `name` and its arguments under one of `keys`. Raises `Malformed`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    return to_call(value, *keys)


def to_call(value: object, *keys: str) -> Call:
    """The same from a value."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise Malformed("no name")
    arguments = next((value[key] for key in keys if key in value), None)
    if not isinstance(arguments, dict):
        raise Malformed(f"{keys[0]} is not an object")
    return Call(value["name"], arguments)


def load_values(text: str) -> tuple[list[object], str]:
    """JSON values one after the other, divided by white space or semicolons, and the rest that is none."""
    decoder, found = json.JSONDecoder(), list[object]()
    while text := text.lstrip(" \t\r\n;"):
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            break
        found.append(value)
        text = text[end:]
    return found, text


def plain_name(call: Call, form: str) -> str:
    """A call's name where the form writes it outside JSON. Raises `UserError` when it would break the form."""
    if not NAME.fullmatch(call.name):
        raise UserError(f"The {form} form cannot write a tool named {call.name!r}", "use letters, digits, _, . and -")
    return call.name


def schemas(tools: Sequence[Mapping[str, Any]] | None) -> Schemas | None:
    """Argument schemas by name, of tools in OpenAI's form."""
    if tools is None:
        return None
    functions = [tool.get("function", tool) for tool in tools]
    return {str(function["name"]): function.get("parameters") or {} for function in functions}
