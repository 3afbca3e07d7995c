"""Recipes: one YAML file that declares a line.

    recipe = load_recipe(find_recipe("laptop"), overrides=["grpo.steps=50"])

Keys: `name`, `seed`, `compute`, `start` (a checkpoint that the line begins with), `tasks` (task sets), `graders`,
`evaluate` (after which checkpoints, on what), `include` (another recipe's sections, which this one's override) and
`line`, a list of nodes: each a stage kind with its settings, with `name:`, `from:` (what fills its first input) and
`inputs:` beside it where the defaults do not suit. `repeat: {times: 2, line: [...]}` iterates, `include: part.yaml`
splices the line of another file. `loopline schema` prints every setting. Not covered: what nodes resolve to (see
`loopline.line`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from loopline.base.config import Config, Runtime
from loopline.base.errors import UserError
from loopline.base.stage import StageKind
from loopline.line import Item, Node, Override, resolve
from loopline.settings import near, parse_settings, set_value, split_override
from loopline.stages import catalogue
from loopline.yaml_file import Marked, read_yaml, where

SHIPPED = Path(__file__).parent / "recipes"
"""The recipes that come with the package."""
BESIDE = ("name", "from", "inputs")
"""Keys of a node beside its kind."""
SECTIONS = ("start", "tasks", "graders", "evaluate")
"""Top-level keys that become nodes."""


class ComputeConfig(Runtime):
    """Where the line runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where models live."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; empty takes every core. Sums are rounded in an order that depends on it, so equal bytes need equal
    threads."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory that a node may take; a recipe with a node whose estimate is above it is refused. Empty takes what the
    machine has."""


class HeadConfig(Config):
    """What a recipe says of the run as a whole."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its default directory is runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random."""
    compute: ComputeConfig = ComputeConfig()
    """Where it runs."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that get a copy of every stage's curve, each from its own package."""


@dataclass(frozen=True)
class Recipe:
    """A recipe, resolved."""

    name: str
    seed: int
    compute: ComputeConfig
    nodes: tuple[Node, ...]
    """The line, in the order in which it runs."""
    track: tuple[str, ...] = ()
    """Trackers that get a copy of every stage's curve."""

    def node(self, name: str) -> Node:
        """The node of that name. Raises `KeyError`."""
        return {node.name: node for node in self.nodes}[name]

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed."""
        return replace(self, seed=seed)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one shipped with the package."""
    path = Path(name)
    if path.exists():
        return path
    shipped = SHIPPED / f"{name.removesuffix('.yaml')}.yaml"
    if "/" not in name and shipped.exists():
        return shipped
    known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    raise UserError(f"There is no recipe {name}", f"give a path to a YAML file, or one of: {known}")


def load_recipe(path: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read, check and resolve a recipe. `overrides` are `key=value` with dotted keys and YAML values."""
    return parse_recipe(read_yaml(path), str(path), path.stem, path.parent, overrides, seed)


def parse_recipe(
    raw: Mapping[str, Any],
    source: str,
    name: str = "run",
    folder: Path = Path(),
    overrides: Sequence[str] = (),
    seed: int | None = None,
    kinds: Mapping[str, StageKind] | None = None,
) -> Recipe:
    """A recipe from its values. `source` names it in errors, paths in it are relative to `folder`."""
    kinds = catalogue() if kinds is None else kinds
    values = _included(_copied(raw), source, folder)
    top, rest = _top_overrides(values, [split_override(text) for text in overrides])
    if seed is not None:
        top["seed"] = seed
    known = [*HeadConfig.model_fields, *SECTIONS, "line"]
    for key in top:
        if key not in known:
            hint = f"put it into the line: `line: [{key}: ...]`" if key in kinds else near(str(key), known, "keys")
            raise UserError(f"{where(top, [key], source)}: unknown key {key!r}", hint)
    head = {key: top[key] for key in HeadConfig.model_fields if key in top}
    settings = parse_settings(HeadConfig, Marked({"name": name, **head}, file=source, lines=_lines(top)), "", source)
    items = _sections(top, source, folder, kinds)
    items += expand(top.get("line") or [], source, folder)
    if not items:
        raise UserError(f"{source}: the recipe declares no line", "write `line:` with a list of nodes below it")
    items = _with_evaluations(items, top.get("evaluate"), source, folder, kinds)
    nodes = resolve(items, kinds, rest, known)
    return Recipe(settings.name, settings.seed, settings.compute, nodes, settings.track)


def expand(entries: Any, source: str, folder: Path, turn: int = 0, repeated: bool = False) -> list[Item]:
    """The declared entries of a line as items: repetitions unrolled, included lines spliced."""
    if not isinstance(entries, list):
        raise UserError(
            f"{source}: line holds {entries!r:.60} instead of a list", "write `- kind: {settings}` below it"
        )
    items: list[Item] = []
    for number, entry in enumerate(entries, start=1):
        entry = Marked({entry: {}}, file=source) if isinstance(entry, str) else entry
        if not isinstance(entry, dict):
            raise UserError(f"{source}: node {number} of the line is {entry!r:.60}", "write `- kind: {settings}`")
        heads = [key for key in entry if key not in BESIDE]
        place = where(entry, heads[:1] or list(entry)[:1], source)
        if len(heads) != 1:
            raise UserError(
                f"{place}: node {number} of the line names {len(heads)} stage kinds ({', '.join(map(str, heads))})",
                f"name one, and beside it only {', '.join(BESIDE)}",
            )
        kind, settings = str(heads[0]), entry[heads[0]]
        if kind == "include":
            file = folder / str(settings)
            part = read_yaml(file if file.exists() else SHIPPED / str(settings))
            items += expand(part.get("line") or [], part.file, Path(part.file).parent, turn, repeated)
        elif kind == "repeat":
            items += _repeated(settings, place, source, folder)
        else:
            if settings is not None and not isinstance(settings, dict):
                raise UserError(
                    f"{place}: {kind} holds {settings!r:.60} instead of settings", f"write `- {kind}: {{}}`"
                )
            items.append(
                Item(
                    kind,
                    _copied(settings or {}),
                    place,
                    folder,
                    name=entry.get("name"),
                    source=entry.get("from"),
                    inputs=entry.get("inputs") or {},
                    turn=turn,
                    repeated=repeated,
                )
            )
    return items


def _repeated(settings: Any, place: str, source: str, folder: Path) -> list[Item]:
    good = isinstance(settings, dict) and set(settings) == {"times", "line"}
    if not good or not isinstance(settings["times"], int) or settings["times"] < 1:
        raise UserError(f"{place}: repeat holds {settings!r:.80}", "write `repeat: {times: 2, line: [...]}`")
    times = settings["times"]
    return [
        item
        for turn in range(1, times + 1)
        for item in expand(settings["line"], source, folder, turn if times > 1 else 0, times > 1)
    ]


def _sections(top: Mapping[str, Any], source: str, folder: Path, kinds: Mapping[str, StageKind]) -> list[Item]:
    """The nodes of a recipe's sections: the start, the task sets, their graders."""
    items: list[Item] = []
    if top.get("start") is not None:
        items.append(Item("start", _mapping(top, "start", source), where(top, ["start"], source), folder))
    if top.get("tasks") is not None:
        sets = _mapping(top, "tasks", source)
        wrapped = {"sets": sets} if "sets" in kinds["tasks"].config.model_fields else sets
        place = where(top, ["tasks"], source)
        items.append(Item("tasks", wrapped, place, folder))
        items.append(Item("graders", _mapping(top, "graders", source), where(top, ["graders"], place), folder))
    elif top.get("graders") is not None or top.get("evaluate") is not None:
        key = "graders" if top.get("graders") is not None else "evaluate"
        raise UserError(f"{where(top, [key], source)}: `{key}` needs task sets", "declare them below `tasks:`")
    return items


def _with_evaluations(
    items: Sequence[Item], section: Any, source: str, folder: Path, kinds: Mapping[str, StageKind]
) -> list[Item]:
    """The items with an evaluation after each checkpoint that `evaluate.after` names."""
    if section is None:
        return list(items)
    if not isinstance(section, dict):
        raise UserError(f"{source}: evaluate holds {section!r:.60}", "write `evaluate: {after: all}`")
    settings = _copied(section)
    after = settings.pop("after", "all")
    place = where(section, ["after"], source)
    makers = {item.name or item.kind for item in items if _gives(item, kinds) == "checkpoint"}
    wanted = makers if after == "all" else set(after if isinstance(after, list) else [after])
    for name in sorted(map(str, wanted - makers)):
        raise UserError(f"{place}: evaluate.after names {name!r}, which is no node that gives a checkpoint",
                        near(name, sorted(makers), "nodes"))  # fmt: skip
    found: list[Item] = []
    counts: dict[str, int] = {}
    # Evaluations need the graders, which come after a start.
    ready = next((number for number, item in enumerate(items) if item.kind == "graders"), -1)
    waiting: list[Item] = []
    for number, item in enumerate(items):
        found.append(item)
        base = item.name or item.kind
        if base in wanted and _gives(item, kinds) == "checkpoint":
            counts[base] = counts.get(base, 0) + 1
            double = counts[base] > 1 and not item.repeated
            name = f"{base}_{item.turn}" if item.repeated else f"{base}_{counts[base]}" if double else base
            waiting.append(Item("evaluate", _copied(settings), place, folder, f"evaluate_{name}", name, turn=item.turn))
        if number >= ready:
            found += waiting
            waiting = []
    return found


def _gives(item: Item, kinds: Mapping[str, StageKind]) -> str:
    return kinds[item.kind].gives if item.kind in kinds else ""


def _top_overrides(raw: dict[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], list[Override]]:
    """The recipe with the overrides of its own keys, and the overrides that are left, which are for nodes."""
    rest: list[Override] = []
    for keys, value in overrides:
        if (
            keys[0] in HeadConfig.model_fields
            or (keys[0] in ("start", "tasks", "graders"))
            or keys[0] == "evaluate"
            and keys[1:2] == ["after"]
        ):
            set_value(raw, keys, value, ".".join(keys))
        else:
            rest.append((keys, value))
    return raw, rest


def _included(raw: dict[str, Any], source: str, folder: Path) -> dict[str, Any]:
    """The recipe merged over what it includes; an included line comes before its own."""
    names = raw.pop("include", None)
    if names is None:
        return raw
    for name in reversed(names if isinstance(names, list) else [names]):
        file = folder / str(name)
        part = read_yaml(file if file.exists() else find_recipe(str(name)))
        below = _included(_copied(part), part.file, Path(part.file).parent)
        line = [*(below.pop("line", None) or []), *(raw.get("line") or [])]
        raw = _laid_over(below, raw)
        if line:
            raw["line"] = line
    return raw


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = Marked(below, file=getattr(above, "file", ""), lines={**_lines(below), **_lines(above)})
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _laid_over(below[key], value) if both else value
    return merged


def _copied(value: Any) -> Any:
    """The same values, which may be changed; lines are kept."""
    if isinstance(value, dict):
        copied = {key: _copied(item) for key, item in value.items()}
        return Marked(copied, file=value.file, lines=value.lines) if isinstance(value, Marked) else copied
    return [_copied(item) for item in value] if isinstance(value, list) else copy.copy(value)


def _mapping(top: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    value = top.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{where(top, [key], source)}: {key} holds {value!r:.60}", f"write keys below `{key}:`")
    found: dict[str, Any] = _copied(value)
    return found


def _lines(raw: Mapping[str, Any]) -> dict[Any, int]:
    return raw.lines if isinstance(raw, Marked) else {}


def schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    base = HeadConfig.model_json_schema()
    definitions = base.setdefault("$defs", {})

    def part(kind: StageKind) -> dict[str, Any]:
        found = kind.config.model_json_schema()
        definitions.update(found.pop("$defs", {}))
        return found

    kinds = catalogue()
    nodes = [
        {
            "type": "object",
            "properties": {name: {"anyOf": [part(kind), {"type": "null"}]}, **_BESIDE_SCHEMA},
            "required": [name],
            "additionalProperties": False,
        }
        for name, kind in kinds.items()
    ]
    repeat = {
        "type": "object",
        "properties": {
            "times": {"type": "integer", "minimum": 1, "description": "Repetitions."},
            "line": {"$ref": "#/$defs/line", "description": "What is repeated."},
        },
        "required": ["times", "line"],
        "additionalProperties": False,
    }
    nodes.append(
        {"type": "object", "properties": {"repeat": repeat}, "required": ["repeat"], "additionalProperties": False}
    )
    nodes.append(
        {
            "type": "object",
            "properties": {"include": {"type": "string", "description": "File whose line is spliced in."}},
            "required": ["include"],
            "additionalProperties": False,
        }
    )
    definitions["line"] = {"type": "array", "items": {"anyOf": [*nodes, {"type": "string"}]}, "description": "Nodes."}
    evaluate = part(kinds["evaluate"])
    evaluate["properties"]["after"] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Nodes after which a checkpoint is evaluated; all stands for every one that gives a checkpoint.",
    }
    tasks = part(kinds["tasks"])
    if "sets" in tasks["properties"]:
        tasks = tasks["properties"]["sets"]
    base["properties"] |= {
        "tasks": tasks,
        "graders": part(kinds["graders"]),
        "evaluate": evaluate,
        "include": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "line": {"$ref": "#/$defs/line"},
    }
    if "start" in kinds:
        base["properties"]["start"] = part(kinds["start"])
    base["additionalProperties"] = False
    return base


_BESIDE_SCHEMA: dict[str, Any] = {
    "name": {"type": "string", "description": "Name of the node; its kind unless given."},
    "from": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Node whose artifact fills the first input.",
    },
    "inputs": {"type": "object", "description": "Input role to the node, or nodes, whose artifact fills it."},
}
