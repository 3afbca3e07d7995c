"""Why a stage ran again: the difference between what it was made from and what it is made from now.

A `BuildKey` is everything an artifact's identity covers. `explain` compares two field by field. Not covered: which
earlier artifact to compare with (see `store.store`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loopline.base.config import sha256_of


@dataclass(frozen=True)
class BuildKey:
    """Everything an artifact's identity covers."""

    stage: str
    """Name of the node: for people, no part of the identity."""
    kind: str
    """Its stage kind."""
    version: int
    """Version of the stage's code, raised by hand when its results change."""
    seed: int
    config: dict[str, Any]
    """The identity part of its config."""
    inputs: dict[str, dict[str, str]]
    """Role to {"stage", "digest"}: inputs count by content, not by how they were made."""

    @property
    def identity(self) -> str:
        """sha256 of the canonical JSON of all fields."""
        digests = {role: given["digest"] for role, given in self.inputs.items()}
        return sha256_of(
            {
                "schema": 2,
                "kind": self.kind,
                "version": self.version,
                "seed": self.seed,
                "config": self.config,
                "inputs": digests,
            }
        )

    @classmethod
    def of_manifest(cls, meta: dict[str, Any]) -> BuildKey:
        """What a stored artifact was made from."""
        return cls(meta["stage"], meta["stage_kind"], meta["version"], meta["seed"], meta["config"], meta["inputs"])


@dataclass(frozen=True)
class Change:
    """One field that differs."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.field.startswith("input "):
            return f"{self.field} changed its content"
        return f"{self.field} changed from {_short(self.before)} to {_short(self.after)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Nested dicts as dotted keys; everything else, lists included, is a leaf."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    out: dict[str, Any] = {}
    for name in sorted(value):
        out |= flatten(value[name], f"{prefix}.{name}")
    return out


def compare(before: BuildKey, after: BuildKey) -> list[Change]:
    """Every field that differs, settings under the node's name."""
    changes = []
    if before.kind != after.kind:
        changes.append(Change(f"{after.stage}'s kind", before.kind, after.kind))
    if before.version != after.version:
        changes.append(Change(f"{after.stage}'s code version", before.version, after.version))
    if before.seed != after.seed:
        changes.append(Change("seed", before.seed, after.seed))
    old, new = flatten(before.config, after.stage), flatten(after.config, after.stage)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            changes.append(Change(name, old.get(name), new.get(name)))
    for role in sorted(before.inputs.keys() | after.inputs.keys()):
        first, second = before.inputs.get(role, {}).get("digest"), after.inputs.get(role, {}).get("digest")
        if first != second:
            stage = (after.inputs.get(role) or before.inputs[role])["stage"]
            changes.append(Change(f"input {stage}", first, second))
    return changes


def explain(changes: list[Change] | None) -> str:
    """One sentence. `None` means there is nothing earlier to compare with."""
    if changes is None:
        return "never ran before"
    if not changes:
        return "an earlier attempt did not finish"
    return "; ".join(str(change) for change in changes)
