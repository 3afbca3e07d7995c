"""Which task sets a stage means: the one place where a choice of sets or tags becomes names with shares.

    select_sets({"tag:reasoning": 0.8, "chat": 0.2}, inputs["tasks"] / "sets.json")    # {"math": 0.4, "code": 0.4, ...}
    select_sets(["math"], sets)                                                        # {"math": 1.0}

A tag selects every set that has it, or some row that has it, and shares its weight equally among them. Not covered:
picking rows by tag inside a set (`load_tasks(..., tags=...)`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json

Sets = Mapping[str, Mapping[str, Any]]
"""The content of a tasks artifact's sets.json: name -> {"tags", "row_tags", "grader", "counts", ...}."""
TAG = "tag:"


def read_sets(sets: Sets | Path) -> Sets:
    """The content of sets.json, given as such or as its path."""
    found: Sets = read_json(sets) if isinstance(sets, Path) else sets
    return found


def select_sets(choice: Mapping[str, float] | Sequence[str] | None, sets: Sets | Path) -> dict[str, float]:
    """Task set -> share above zero, in the order of the choice; None or an empty choice takes all sets equally.

    Raises `UserError` for a name or tag that no set has, a negative share, and a choice without a share above zero.
    """
    known = read_sets(sets)
    if not choice:
        return dict.fromkeys(known, 1.0)
    wanted = choice if isinstance(choice, Mapping) else dict.fromkeys(choice, 1.0)
    shares: dict[str, float] = {}
    for name, share in wanted.items():
        if share < 0:
            raise UserError(f"The share of {name!r} is {share}", "give a share of zero or more")
        members = members_of(name, known)
        part = share / len(members) if isinstance(choice, Mapping) else share
        for member in members:
            shares[member] = shares.get(member, 0.0) + part if isinstance(choice, Mapping) else part
    shares = {name: share for name, share in shares.items() if share > 0}
    if not shares:
        raise UserError("Every chosen task set has a share of zero", "give at least one of them a share above zero")
    return shares


def members_of(name: str, sets: Sets) -> list[str]:
    """The sets that a name or `tag:<tag>` selects. Raises `UserError` when there is none."""
    if not name.startswith(TAG):
        if name in sets:
            return [name]
        near = difflib.get_close_matches(name, sets, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"define it under `tasks`, or use one of {', '.join(sets)}"
        raise UserError(f"There is no task set {name!r}", hint)
    tag = name.removeprefix(TAG)
    members = [one for one, entry in sets.items() if tag in tags_of(entry)]
    if not members:
        tags = sorted({other for entry in sets.values() for other in tags_of(entry)})
        raise UserError(
            f"No task set is tagged {tag!r}", f"use one of the tags {', '.join(tags)}" if tags else "tag a task set"
        )
    return members


def tags_of(entry: Mapping[str, Any]) -> list[str]:
    """The tags of a set and of its rows, from its entry of sets.json."""
    return list(dict.fromkeys((*entry.get("tags", ()), *entry.get("row_tags", ()))))


def set_entry(
    grader: str, tags: Sequence[str], parts: Mapping[str, Sequence[Mapping[str, Any]]], source: str
) -> dict[str, Any]:
    """One entry of sets.json, of a set with these rows per part; `answers` says whether every row has a reference."""
    everything = [row for found in parts.values() for row in found]
    row_tags = sorted({tag for row in everything for tag in row.get("tags", ())} - set(tags))
    return {
        "source": source,
        "grader": grader,
        "tags": list(tags),
        "row_tags": row_tags,
        "counts": {part: len(found) for part, found in parts.items()},
        "answers": all(row.get("answer") for row in everything),
    }
