"""Rows of preference data as token sequences: pairs, labelled answers, solutions in steps.

    items = pair_items(rows, tokenizer)         # Item(name, (chosen, rejected)) each

Not covered: reading files (see `tasks.layouts`), log-probs of the reference (see `preference`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loopline.base.errors import UserError
from loopline.chat.tokenizer import Tokenizer
from loopline.tasks.rows import Labelled, Pair, Solution
from loopline.training.batch import Example
from loopline.training.conversations import completion_example, steps_example
from loopline.training.lengths import Item

Advance = Callable[[], None]


def pair_items(rows: Sequence[Pair], tokenizer: Tokenizer, advance: Advance = lambda: None) -> list[Item]:
    """(chosen, rejected) of every row. Raises `UserError` for a pair whose sides are rendered alike."""
    items: list[Item] = []
    for row in rows:
        tools = row.get("tools", ())
        chosen, rejected = (
            completion_example(tokenizer, row["prompt"], side, row["id"], tools)
            for side in (row["chosen"], row["rejected"])
        )
        if list(chosen.tokens) == list(rejected.tokens):
            raise UserError(
                f"{row['id']}: the chosen and the rejected answer differ only in what the chat template drops, such as "
                "their reasoning",
                "drop the row, or use a template that keeps what they differ in",
            )
        items.append(Item(row["id"], (chosen, rejected)))
        advance()
    return items


def label_items(rows: Sequence[Labelled], tokenizer: Tokenizer, advance: Advance = lambda: None) -> list[Item]:
    """(answer,) of every row with its label."""
    items: list[Item] = []
    for row in rows:
        example = completion_example(tokenizer, row["prompt"], row["completion"], row["id"], row.get("tools", ()))
        items.append(Item(row["id"], (Example(example.tokens, example.weights, scalars={"label": row["label"]}),)))
        advance()
    return items


def solution_items(
    rows: Sequence[Solution], tokenizer: Tokenizer, separator: str, advance: Advance = lambda: None
) -> list[Item]:
    """(solution,) of every row, with a label at the end of each step."""
    items: list[Item] = []
    for row in rows:
        solution = steps_example(tokenizer, row["prompt"], row["steps"], row["labels"], separator, row["id"])
        items.append(Item(row["id"], (solution,)))
        advance()
    return items


def kto_items(
    rows: Sequence[Labelled], tokenizer: Tokenizer, limit: int, advance: Advance = lambda: None
) -> list[Item]:
    """(answer with label 1 or 0, another row's answer to the same prompt with label -1) of every row.

    The second only estimates a divergence, and is cut at `limit` tokens. Raises `UserError` when all labels are alike,
    or there are no two prompts.
    """
    kinds = {row["label"] > 0 for row in rows}
    if len(kinds) < 2:
        raise UserError(
            f"All {len(rows)} labels are {'above' if True in kinds else 'at most'} 0, so there is nothing to prefer",
            "give rows of both kinds: label true (or above 0) for good answers, false for bad ones",
        )
    items: list[Item] = []
    for number, (row, item) in enumerate(zip(rows, label_items(rows, tokenizer, advance), strict=True)):
        others = (rows[(number + step) % len(rows)] for step in range(1, len(rows)))
        other = next((candidate for candidate in others if candidate["prompt"] != row["prompt"]), None)
        if other is None:
            raise UserError("All rows have the same prompt, and KTO compares answers across prompts", "use loss=dpo")
        stray = completion_example(tokenizer, row["prompt"], other["completion"], f"{row['id']} and {other['id']}")
        (answer,) = item.examples
        cut = Example(stray.tokens[:limit], stray.weights[:limit], scalars={"label": -1.0})
        labelled = Example(answer.tokens, answer.weights, scalars={"label": float(row["label"] > 0)})
        items.append(Item(row["id"], (labelled, cut)))
    return items
