"""Recipes: one YAML file that says how the whole line runs.

    recipe = load_recipe(Path("recipes/laptop.yaml"), overrides=["grpo.steps=50"])

Top-level keys are `name`, `seed`, `compute`, and one section per stage (see `loopline schema`). Every section is the
typed config of its stage; what a recipe leaves out keeps its default. Mistakes are refused before anything runs, naming
the file, the key, and a near miss where there is one. Not covered: including one recipe in another.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from loopline.base.config import Config, Runtime
from loopline.base.errors import UserError
from loopline.graph import CONFIGS, config_class


class ComputeConfig(Runtime):
    """Where the line runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where models live."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; empty takes every core. Sums are rounded in an order that depends on it, so equal bytes need equal
    threads."""


class Recipe(Config):
    """A parsed recipe."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its default directory is runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random."""
    compute: ComputeConfig = ComputeConfig()
    """Where it runs."""
    sections: dict[str, Config] = Field(default_factory=dict, exclude=True)
    """Config of every section."""

    def section(self, name: str) -> Config:
        """The config of a section."""
        return self.sections[name]


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one shipped with the project."""
    path = Path(name)
    if path.exists():
        return path
    folders = [Path("recipes"), Path(__file__).resolve().parents[2] / "recipes"]
    for folder in folders:
        shipped = folder / f"{name.removesuffix('.yaml')}.yaml"
        if "/" not in name and shipped.exists():
            return shipped
    known = sorted({file.stem for folder in folders if folder.exists() for file in folder.glob("*.yaml")})
    raise UserError(f"There is no recipe {name}", f"give a path to a YAML file, or one of: {', '.join(known)}")


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML readers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read and check a recipe. `overrides` are `key=value` with dotted keys and YAML values."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError as error:
        raise UserError(f"There is no recipe {path}", "check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a recipe", "give a YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        what = problem if isinstance(error, yaml.constructor.ConstructorError) else f"not YAML ({problem})"
        raise UserError(f"{path}{where}: {what}", "mend that line") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} holds {type(raw).__name__} instead of keys and values", "start from recipes/laptop.yaml"
        )
    for override in overrides:
        _apply(raw, override)
    if seed is not None:
        raw["seed"] = seed
    return parse_recipe(raw, str(path), path.stem)


def parse_recipe(raw: Mapping[str, Any], source: str, name: str = "run") -> Recipe:
    """Check a recipe's values. `source` names it in errors."""
    known = [*(key for key in Recipe.model_fields if key != "sections"), *CONFIGS]
    for key in raw:
        if key not in known:
            raise UserError(f"{source}: unknown section {key!r}", _near(str(key), known, "sections"))
    sections = {section: _parse(config_class(section), raw.get(section), section, source) for section in CONFIGS}
    own = {key: raw[key] for key in ("name", "seed", "compute") if key in raw}
    own.setdefault("name", name)
    recipe = _parse(Recipe, own, "", source)
    full: Recipe = recipe.model_copy(update={"sections": sections})
    return full


def parse_settings(raw: Mapping[str, Any], kind: type[Config], section: str, source: str) -> Any:
    """One config from its settings, with the errors of a recipe; `section` and `source` name it in them."""
    return _parse(kind, dict(raw), section, source)


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as nested settings."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _apply(raw, override)
    return raw


def schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    base = Recipe.model_json_schema()
    base["properties"].pop("sections", None)
    for section in CONFIGS:
        part = config_class(section).model_json_schema()
        base.setdefault("$defs", {}).update(part.pop("$defs", {}))
        base["properties"][section] = part
    base["additionalProperties"] = False
    return base


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: not of the form key=value", "write for example --set grpo.steps=50")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {override}: the value is not YAML, or gives a key twice", "quote it, or write a plain number"
        ) from error
    *parents, last = key.strip().split(".")
    at: Any = raw
    for parent in parents:
        if at.get(parent) is None:
            at[parent] = {}  # `grpo:` with nothing below it is an empty section
        at = at[parent]
        if not isinstance(at, dict):
            raise UserError(f"--set {override}: {parent} holds a value, not settings", "name a deeper or another key")
    at[last] = value


def _parse(kind: type[Any], value: Any, section: str, source: str) -> Any:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{source}: {section} holds {value!r} instead of settings", f"write keys below `{section}:`")
    try:
        return kind.model_validate(_over_defaults(kind, value or {}))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join([section, *path] if section else path)
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key {key}{more}", _near(path[-1], _keys(kind, path), "keys")) from error
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] == "value_error" else f" (given {first.get('input')!r})"
        raise UserError(f"{source}: {key or section}: {message}{given}{more}", f"change {key or section}") from error


def _over_defaults(kind: type[Config], given: dict[str, Any]) -> dict[str, Any]:
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


def _near(word: str, known: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"use one of the {what} {', '.join(known)}" if known else "remove it"
