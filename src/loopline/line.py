"""A declared line as nodes: what runs, in which order, from which inputs.

    nodes = resolve(items, catalogue())      # items from `loopline.recipe`

Everything that cannot resolve is refused here, before any compute, naming file, line and fix: an unknown kind or
setting, an input that no earlier node gives, a file that is not there. Not covered: reading recipes (see
`loopline.recipe`) and running nodes (see `loopline.pipeline`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopline.base.config import Config
from loopline.base.errors import UserError
from loopline.base.stage import StageKind, Takes
from loopline.inputs import find_input
from loopline.settings import input_files, near, parse_settings, set_value

Override = tuple[list[str], Any]
"""Keys and value of one `--set`."""


@dataclass(frozen=True)
class Node:
    """One node of a line."""

    name: str
    kind: StageKind
    settings: Config
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role (of one that takes several: role.node) to the earlier node whose artifact fills it."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Dotted name of a setting to the user's file or directory that it names."""
    turn: int = 0
    """Which repetition of a `repeat` it belongs to, from 1; 0 outside."""
    place: str = ""
    """"file, line N" where the recipe declares it."""


@dataclass
class Item:
    """A node as declared, before anything is resolved."""

    kind: str
    settings: dict[str, Any]
    place: str
    folder: Path
    """What paths in its settings are relative to."""
    name: str | None = None
    source: Any = None
    """`from:`: one node's name, or a list."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    turn: int = 0
    repeated: bool = False
    """Whether its names carry the number of the repetition."""


def name_items(items: Sequence[Item]) -> list[str]:
    """A unique name for every item: its own or its kind's, with the number of its repetition, or of its double."""
    names: list[str] = []
    for item in items:
        base = item.name or item.kind
        name = f"{base}_{item.turn}" if item.repeated else base
        if name in names and item.name is not None:
            raise UserError(f"{item.place}: two nodes are called {name!r}", "give one of them another `name:`")
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names


def resolve(
    items: Sequence[Item], kinds: Mapping[str, StageKind], overrides: Sequence[Override] = (), taken: Sequence[str] = ()
) -> tuple[Node, ...]:
    """The nodes of the items, in order, with typed settings and every input filled.

    `overrides` whose first key is a node's name change that node, those whose first key is a kind every node of it.
    `taken` are further first keys that a message may propose. Raises `UserError` for whatever does not resolve.
    """
    for item in items:
        if item.kind not in kinds:
            raise UserError(
                f"{item.place}: there is no stage kind {item.kind!r}", near(item.kind, list(kinds), "kinds")
            )
    names = name_items(items)
    _override(items, names, overrides, taken)
    nodes: list[Node] = []
    for item, name in zip(items, names, strict=True):
        kind = kinds[item.kind]
        settings = parse_settings(kind.config, item.settings, name, item.place)
        files = {
            role: find_input(text, item.folder, item.place, f"{name}.{role}") for role, text in input_files(settings)
        }
        inputs = _inputs(item, name, kind, nodes, names)
        nodes.append(Node(name, kind, settings, inputs, files, item.turn, item.place))
    return tuple(nodes)


def _override(items: Sequence[Item], names: Sequence[str], overrides: Sequence[Override], taken: Sequence[str]) -> None:
    for keys, value in overrides:
        first = keys[0]
        text = f"{'.'.join(keys)}={value}"
        chosen = [item for item, name in zip(items, names, strict=True) if name == first]
        chosen = chosen or [item for item in items if first in (item.name, item.kind)]
        if not chosen:
            known = list(dict.fromkeys([*taken, *names, *(item.kind for item in items)]))
            raise UserError(f"--set {text}: the recipe has no node {first!r}", near(first, known, "nodes"))
        if len(keys) < 2:
            raise UserError(f"--set {text}: {first} is a node, not a setting", f"write for example {first}.steps=5")
        for item in chosen:
            set_value(item.settings, keys[1:], value, text)


def _inputs(item: Item, name: str, kind: StageKind, before: Sequence[Node], names: Sequence[str]) -> dict[str, str]:
    """Which earlier node fills each role."""
    wanted = dict(item.inputs)
    if item.source is not None:
        if not kind.takes:
            raise UserError(f"{item.place}: {name} takes no input, so `from` means nothing", "remove `from`")
        wanted.setdefault(next(iter(kind.takes)), item.source)
    for role in wanted:
        if role not in kind.takes:
            raise UserError(f"{item.place}: {name} has no input {role!r}", near(role, list(kind.takes), "inputs"))
    found: dict[str, str] = {}
    for role, takes in kind.takes.items():
        if role in wanted:
            chosen = wanted[role] if isinstance(wanted[role], list) else [wanted[role]]
            nodes = [_named(str(word), takes, role, item, name, before, names) for word in chosen]
            if not takes.many and len(nodes) > 1:
                raise UserError(f"{item.place}: the input {role!r} of {name} takes one node", "name one")
        else:
            nodes = _by_default(takes, before)
        if not nodes and takes.required:
            raise UserError(
                f"{item.place}: {name} needs a {' or '.join(takes.kinds)} as its input {role!r}, and no node before it "
                "gives one",
                f"put a stage that gives one before it (`loopline stages` lists them), or name it: "
                f"inputs: {{{role}: NODE}}",
            )
        for node in nodes:
            found[f"{role}.{node.name}" if takes.many else role] = node.name
    return found


def _by_default(takes: Takes, before: Sequence[Node]) -> list[Node]:
    if not takes.by_default:
        return []
    fitting = [node for node in before if node.kind.gives in takes.kinds]
    return fitting if takes.many else fitting[-1:]


def _named(
    word: str, takes: Takes, role: str, item: Item, name: str, before: Sequence[Node], names: Sequence[str]
) -> Node:
    """The earlier node that `word` names: inside a repetition that of the same one, outside that of the last."""
    fitting = [node for node in before if node.name in (word, f"{word}_{item.turn}" if item.turn else word)]
    fitting = fitting or [node for node in before if node.turn and node.name == f"{word}_{node.turn}"]
    if not fitting:
        later = " It comes later in the line." if word in names else ""
        raise UserError(
            f"{item.place}: {name} takes {role!r} from {word!r}, and no node before it has that name.{later}",
            near(word, [node.name for node in before], "nodes"),
        )
    node = fitting[-1]
    if node.kind.gives not in takes.kinds:
        raise UserError(
            f"{item.place}: the input {role!r} of {name} is a {' or '.join(takes.kinds)}, and {node.name} gives a "
            f"{node.kind.gives}",
            "name a node that gives one",
        )
    return node


def upstream(nodes: Sequence[Node], names: Sequence[str]) -> list[Node]:
    """The named nodes and everything they need, in order. Raises `UserError` for an unknown one."""
    by_name = {node.name: node for node in nodes}
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        current = pending.pop()
        if current not in by_name:
            raise UserError(f"There is no node {current!r}", near(current, list(by_name), "nodes"))
        if current not in wanted:
            wanted.add(current)
            pending += by_name[current].inputs.values()
    return [node for node in nodes if node.name in wanted]
