"""Settings from a recipe or a command line as typed configs, with errors that name the key and the fix.

    config = parse_settings(GRPOConfig, {"steps": 5}, "grpo", raw)
    set_value(raw, ["grpo", "steps"], 9, "grpo.steps=9")

Not covered: which settings there are (each stage's config).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from loopline.base.config import Config, InputFile
from loopline.base.errors import UserError
from loopline.yaml_file import parse_value, where

Kind = TypeVar("Kind", bound=BaseModel)


def parse_settings(kind: type[Kind], value: Any, section: str, source: str) -> Kind:
    """The config `kind` from plain values, laid over its defaults.

    `section` is what messages call it ("" for the recipe itself), `source` the file where `value` does not know it.
    Raises `UserError` for an unknown key, a value out of bounds or no settings at all.
    """
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{source}: {section} holds {value!r} instead of settings", f"write keys below `{section}:`")
    try:
        return kind.model_validate(_over_defaults(kind, value or {}))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join([section, *path] if section else path)
        place = where(value, first["loc"], source)
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            raise UserError(f"{place}: unknown key {key}{more}", near(path[-1], _keys(kind, path), "keys")) from error
        message = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "value_error" else f" (found {first.get('input')!r:.80})"
        raise UserError(f"{place}: {key or section}: {message}{found}{more}", f"change {key or section}") from error


def split_override(override: str) -> tuple[list[str], Any]:
    """`key.key=value` as (keys, value). Raises `UserError` for anything else."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: not of the form key=value", "write for example --set grpo.steps=50")
    try:
        return key.strip().split("."), parse_value(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {override}: the value is not YAML, or gives a key twice", "quote it, or write a plain number"
        ) from error


def set_value(raw: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    """Set a nested value in place. Raises `UserError` where a plain value stands in the way."""
    at: Any = raw
    for key in keys[:-1]:
        if at.get(key) is None:
            at[key] = {}  # `grpo:` with nothing below it is an empty section
        at = at[key]
        if not isinstance(at, dict):
            raise UserError(f"--set {override}: {key} holds a value, not settings", "name a deeper or another key")
    at[keys[-1]] = value


def input_files(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, path as written) of every field of the config that names a user's file."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if any(isinstance(item, InputFile) for item in info.metadata):
            if value is not None:
                yield f"{prefix}{name}", str(value)
        else:
            yield from _nested_files(value, f"{prefix}{name}.")


def _nested_files(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from input_files(value, prefix)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested_files(item, f"{prefix}{key}.")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _nested_files(item, f"{prefix}{number}.")


def near(word: str, known: Sequence[str], what: str) -> str:
    """The fix for a name that is not among the known ones."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"use one of the {what} {', '.join(known)}" if known else "remove it"


def _over_defaults(kind: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """`given` with its blocks laid over the defaults of `kind`: naming one key of a block keeps its others."""
    defaults = {name: info.default for name, info in kind.model_fields.items()}
    return {name: _over(defaults.get(name), value) for name, value in given.items()}


def _over(default: Any, given: Any) -> Any:
    if not isinstance(default, Config) or not isinstance(given, dict):
        return given
    kept = {} if default.whole else {name: getattr(default, name) for name in type(default).model_fields}
    return {**kept, **{name: _over(getattr(default, name, None), value) for name, value in given.items()}}


def _keys(kind: type[Any], path: Sequence[str]) -> list[str]:
    for part in path[:-1]:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Config)):
            return []
        kind = annotation
    return list(kind.model_fields)
