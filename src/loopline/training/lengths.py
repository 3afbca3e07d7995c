"""Token sequences that fit: what is too long is refused, dropped or cut before any model is loaded.

    kept, counts = fit(items, config, position_limit(model))

Not covered: packing (see `training.batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.training.batch import Example
from loopline.training.config import TrainingConfig


@dataclass(frozen=True)
class Item:
    """What one row became: one sequence, or those that have to stay together."""

    name: str
    """What messages call the row."""
    examples: tuple[Example, ...]
    """One of a conversation, two of a pair."""

    @property
    def tokens(self) -> int:
        """Length of its longest sequence."""
        return max(len(example.tokens) for example in self.examples)


def position_limit(model: Path) -> int | None:
    """The longest sequence that a checkpoint's config allows, in tokens; None when it does not say."""
    limit = read_json(model / "config.json").get("max_position_embeddings")
    return int(limit) if limit else None


def fit(items: Sequence[Item], config: TrainingConfig, model_limit: int | None) -> tuple[list[Item], dict[str, int]]:
    """The items of which every sequence fits, and counts of the others.

    Raises `UserError` for longer ones unless `config.overlong` says to drop or truncate them.
    """
    limit = config.longest(model_limit)
    long = [item for item in items if item.tokens > limit]
    if not long:
        return list(items), {}
    if config.overlong == "refuse":
        longest = max(long, key=lambda item: item.tokens)
        fix = "leave them out with overlong=drop, or cut them with overlong=truncate"
        if model_limit is None or longest.tokens <= model_limit:
            fix = f"set sequence_length={longest.tokens}, {fix}"
        why = "the model takes" if limit == model_limit else "sequence_length allows"
        raise UserError(
            f"{len(long)} of {len(items)} rows are longer than the {limit} tokens that {why}; the longest, "
            f"{longest.name}, has {longest.tokens}",
            fix,
        )
    kept: list[Item] = []
    counts = {"too long": 0, "cut": 0}
    for item in items:
        cut = item if item.tokens <= limit else Item(item.name, tuple(_cut(part, limit) for part in item.examples))
        if cut is item:
            kept.append(item)
        elif config.overlong == "truncate" and all(any(part.weights) for part in cut.examples):
            counts["cut"] += 1
            kept.append(cut)
        else:
            # Cut before the first token of an answer, a row would teach nothing.
            counts["too long"] += 1
    if not kept:
        raise UserError(f"All {len(items)} rows are longer than {limit} tokens", "raise sequence_length")
    return kept, {why: count for why, count in counts.items() if count}


def _cut(item: Example, limit: int) -> Example:
    extras = {name: values[:limit] for name, values in item.extras.items()}
    return Example(item.tokens[:limit], item.weights[:limit], extras, item.scalars)
