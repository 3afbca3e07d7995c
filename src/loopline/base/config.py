"""Typed, frozen configs and what part of them is identity.

A stage's config derives from `Config`. Fields whose type derives from `Runtime` (threads, device, worker counts) say
where and how fast something runs, never what it computes: `identity_of` leaves them out, by type, so that moving a run
to another machine does not rebuild it.

Not covered: reading recipes from YAML (see `loopline.recipe`).
"""

from __future__ import annotations

import hashlib
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict

from loopline.base.files import to_json


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    whole: ClassVar[bool] = False
    """Whether a recipe that names one of its keys replaces the default whole instead of changing that key of it."""


class Runtime(Config):
    """Base of settings that change where or how fast something runs, and are therefore not identity."""


def identity_of(value: Any) -> Any:
    """The JSON value that identifies `value`, without anything of a `Runtime` type.

    Raises `TypeError` for a value with no canonical form (callables, sets, arbitrary objects).
    """
    if isinstance(value, Runtime):
        raise TypeError(f"{type(value).__name__} is a Runtime setting and has no identity")
    if isinstance(value, BaseModel):
        kept = [
            name
            for name, info in type(value).model_fields.items()
            if not _is_runtime(info.annotation) and not any(isinstance(item, InputFile) for item in info.metadata)
        ]
        items = {name: getattr(value, name) for name in kept}
        return {name: identity_of(item) for name, item in items.items() if not isinstance(item, Runtime)}
    if isinstance(value, Enum):
        return identity_of(value.value)
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # 1.0 in YAML and 1 in YAML must be the same setting.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, dict):
        return {str(key): identity_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity_of(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical form: configs hold numbers, text, lists and dicts")


def _is_runtime(annotation: Any) -> bool:
    """Whether a field is declared as a `Runtime`, also an optional one or a list: unset, it must not count either."""
    if isinstance(annotation, type):
        return issubclass(annotation, Runtime)
    return any(_is_runtime(part) for part in get_args(annotation))


def sha256_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(to_json(value).encode("utf-8")).hexdigest()


class InputFile:
    """Marks a field that names a file or directory: `data: Annotated[str | None, InputFile()] = None`.

    Such a field counts by content: the pipeline resolves its path (relative to the recipe), and hands it to the stage
    as the input artifact of the field's dotted name. The path itself is no identity.
    """
