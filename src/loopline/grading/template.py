"""Grader templates: `{{ item.answer }}`, `{{ sample.output_text }}`, `{{ sample.output_json.a.b }}`.

The two namespaces and the dotted paths of the OpenAI grader format; nothing is evaluated. Not covered: indexing lists,
filters, conditionals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from loopline.base.errors import UserError

FIELD = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
PATH = re.compile(r"(?:item|sample)(?:\.[A-Za-z_][A-Za-z0-9_]*)+")


class MissingField(Exception):
    """A template names a field that this sample or item does not have."""


def check_template(template: str, where: str) -> None:
    """Raise `UserError` when a placeholder is not a path into `item` or `sample`."""
    for path in FIELD.findall(template):
        if not PATH.fullmatch(path):
            raise UserError(
                f"{where}: the placeholder {{{{ {path} }}}} is not understood",
                "use {{ item.field }} or {{ sample.output_text }}",
            )


def render(template: str, namespaces: Mapping[str, Any]) -> str:
    """The template with every placeholder filled in. Raises `MissingField`."""

    def value_of(match: re.Match[str]) -> str:
        value: Any = namespaces
        for name in match[1].split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise MissingField(match[1])
            value = value[name]
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

    return FIELD.sub(value_of, template)


def sample_namespace(text: str) -> dict[str, Any]:
    """The `sample` namespace of an output; `output_json` is there only when the output is JSON."""
    names: dict[str, Any] = {"output_text": text}
    if text[:1] in "{[" and len(text) < 20_000:
        try:
            names["output_json"] = json.loads(text)
        except (ValueError, RecursionError):
            return names
    return names
