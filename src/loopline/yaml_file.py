"""YAML that remembers its lines, so that an error in a recipe names the line at fault.

    raw = read_yaml(Path("recipe.yaml"))      # dicts are `Marked`: raw.line_of("seed") is 2
    where(raw, ["grpo", "steps"])             # "recipe.yaml, line 9"

A key given twice is refused. Not covered: what the keys mean (see `loopline.recipe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from loopline.base.errors import UserError


class Marked(dict[Any, Any]):
    """A mapping that knows the file and the line of each of its keys."""

    def __init__(self, *args: Any, file: str = "", lines: dict[Any, int] | None = None) -> None:
        super().__init__(*args)
        self.file = file
        self.lines = dict(lines or {})

    def line_of(self, key: Any) -> int | None:
        """Line of a key, from 1; None for one that was not in the file."""
        return self.lines.get(key)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML readers silently take the last."""

    file = ""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _marked(loader: _Loader, node: yaml.MappingNode) -> Any:
    found = Marked(file=loader.file)
    yield found
    found.update(loader.construct_mapping(node))
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            found.lines[loader.construct_object(key)] = key.start_mark.line + 1


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _marked)


def parse_value(text: str) -> Any:
    """A YAML value written on a command line. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> Marked:
    """The mapping that a YAML file holds. Raises `UserError` naming file and line for anything else."""
    loader = type("_FileLoader", (_Loader,), {"file": str(path)})
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), loader)
    except FileNotFoundError as error:
        raise UserError(f"There is no recipe {path}", "check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a recipe", "give a YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        what = problem if isinstance(error, yaml.constructor.ConstructorError) else f"not YAML ({problem})"
        raise UserError(f"{path}{place}: {what}", "correct that line") from error
    if raw is None:
        return Marked(file=str(path))
    if not isinstance(raw, Marked):
        raise UserError(f"{path} holds {type(raw).__name__} instead of keys and values", "write `line:` with its nodes")
    return raw


def where(raw: Any, keys: Sequence[Any], source: str = "") -> str:
    """ "file, line N" of the deepest key of the path that the file holds; `source` where nothing is known."""
    found, at = source, raw
    for key in keys:
        if isinstance(at, Marked):
            found = at.file or found
            line = at.line_of(key)
            if line is not None:
                found = f"{at.file}, line {line}"
        if isinstance(at, dict) and key in at or isinstance(at, list) and isinstance(key, int) and key < len(at):
            at = at[key]
        else:
            break
    return found
