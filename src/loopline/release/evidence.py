"""What is known about one candidate: scores per task set and tag, refusals, size and counted cost.

Reads the files of evaluation artifacts and checkpoint directories; measures nothing. Rows of one part only are ever
returned: the development part chooses, the held-out part is read for the last check. Not covered: tool stability (see
`release.tools`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.evaluation.statistics import Comparison, Estimate, mean_interval, paired_comparison
from loopline.grading.grade import split_thinking
from loopline.grading.verifiers import refuses
from loopline.model.config import ModelConfig, unsupported
from loopline.model.weights import INDEX, SINGLE
from loopline.release.config import Mode

Part = Literal["dev", "heldout"]
Places = Mapping[str, tuple[str, tuple[str, ...]]]
"""Task id -> (part, tags), for rows that do not say so themselves."""
REFUSAL, OVER_REFUSAL = "refusal", "over_refusal"


@dataclass(frozen=True)
class Item:
    """One graded answer."""

    task: str
    task_set: str
    tags: tuple[str, ...]
    score: float | None
    refused: bool
    """Whether it declines a request that must be answered."""
    tokens: int


@dataclass(frozen=True)
class Size:
    """What a checkpoint costs per generated token, counted from its files."""

    parameters: int
    bytes: int
    """Of the weights files; generating a token reads all of it."""
    flops: int
    """Per token: two per parameter, one multiplication and one addition (Kaplan et al. 2020, arXiv:2001.08361)."""


@dataclass(frozen=True)
class Evidence:
    """One candidate."""

    name: str
    size: Size
    items: tuple[Item, ...]
    """Graded answers of the part that decides."""
    metrics: Mapping[str, Estimate]
    """Task set, `tag:<tag>`, `refusal` (tasks tagged must_refuse), `over_refusal` (must_answer ones refused)."""
    tools: Mapping[str, Any] | None = None
    answer_tokens: float = 0.0
    """Mean length of an answer in tokens: cost per answer is this times cost per token."""


def places_of(tasks: Path | None) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Part and tags of every task of a tasks artifact that is not for training."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for part in ("dev", "heldout"):
        file = None if tasks is None else tasks / f"{part}.jsonl"
        if file is not None and file.exists():
            found |= {str(row["id"]): (part, tuple(row.get("tags", ()))) for row in read_jsonl(file)}
    return found


def modes_of(evaluation: Path) -> set[str]:
    """The modes an evaluation was made in."""
    return {str(row.get("mode", "sampled")) for row in read_jsonl(evaluation / "items.jsonl")}


def shared_mode(evaluations: Sequence[Path], wanted: Mode | None) -> Mode:
    """`wanted`, or the mode that all evaluations have, sampled before greedy. Raises `UserError` when there is none."""
    shared = set.intersection(*(modes_of(path) for path in evaluations))
    found: Mode | None = next((mode for mode in ("sampled", "greedy") if mode in shared), None)
    if wanted in shared:
        return wanted
    if wanted is not None or found is None:
        both = ", ".join(sorted(shared)) or "none"
        raise UserError(
            f"Not every evaluation has {wanted or 'the same'} answers; modes they share: {both}",
            "evaluate all candidates in the same `modes`, or change `mode`",
        )
    return found


def read_items(evaluation: Path, mode: Mode, part: Part, places: Places) -> tuple[Item, ...]:
    """The answers of one mode and part. Raises `UserError` when there are none, or a row belongs to no part."""
    file = evaluation / "items.jsonl"
    items, other = [], set()
    for number, row in enumerate(read_jsonl(file), start=1):
        if row.get("mode", mode) != mode:
            continue
        where, tags = places.get(str(row["task"]), (None, ()))
        where = row.get("part", where)
        if where not in ("dev", "heldout"):
            raise UserError(
                f"{file}, row {number}: the task {row['task']!r} belongs to no part of the recipe's tasks",
                "evaluate on the recipe's own task sets",
            )
        other.add(where)
        if where == part:
            items.append(item_of(row, tuple(row.get("tags", tags))))
    if not items:
        raise UserError(
            f"{file} has no {mode} answers to tasks of the {part} part (it has: {', '.join(sorted(other)) or 'none'})",
            f"evaluate with {mode!r} among `modes` and {part!r} among `parts`",
        )
    return tuple(items)


def item_of(row: Mapping[str, Any], tags: tuple[str, ...]) -> Item:
    """One row of items.jsonl."""
    score = row["score"]
    declined = "must_answer" in tags and (
        "over_refusal" in row.get("flags", ())
        or (score != 1 and refuses(split_thinking(str(row.get("output", "")))[1] or ""))
    )
    return Item(str(row["task"]), str(row["task_set"]), tags, score, declined, int(row.get("tokens", 0)))


def names_of(items: Iterable[Item]) -> list[str]:
    """Task sets that occur, sorted."""
    return sorted({item.task_set for item in items})


def fits(name: str) -> Callable[[Item], bool]:
    """Whether an item belongs to a task set, or to `tag:<tag>`."""
    if name.startswith("tag:"):
        return lambda item: name.removeprefix("tag:") in item.tags
    return lambda item: item.task_set == name


def scores(items: Iterable[Item], name: str) -> dict[str, float | None]:
    """Task id -> score of a task set or `tag:<tag>`; several samples of a task become their mean."""
    member = fits(name)
    samples: dict[str, list[float | None]] = {}
    for item in items:
        if member(item):
            samples.setdefault(f"{item.task_set}/{item.task}", []).append(item.score)
    return {task: _mean(values) for task, values in samples.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def pairs(a: Sequence[Item], b: Sequence[Item], name: str) -> tuple[list[float | None], list[float | None]]:
    """Scores of the tasks both answered, in one order."""
    left, right = scores(a, name), scores(b, name)
    shared = sorted(left.keys() & right.keys())
    return [left[task] for task in shared], [right[task] for task in shared]


def differences(a: Sequence[float | None], b: Sequence[float | None]) -> list[float]:
    """Differences of the pairs in which both sides were graded."""
    return [x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def compare(a: Sequence[Item], b: Sequence[Item], name: str, seed: int = 0) -> Comparison | None:
    """a against b on the tasks both answered; None when they share no graded task."""
    left, right = pairs(a, b, name)
    return paired_comparison(left, right, seed) if differences(left, right) else None


def metrics_of(items: Sequence[Item]) -> dict[str, Estimate]:
    """Mean score of every task set and tag, and the two shares of refusals."""
    tags = sorted({tag for item in items for tag in item.tags})
    found: dict[str, list[float | None]] = {}
    for name in [*names_of(items), *(f"tag:{tag}" for tag in tags)]:
        found[name] = list(scores(items, name).values())
    found[REFUSAL] = list(scores(items, "tag:must_refuse").values())
    found[OVER_REFUSAL] = [
        None if item.score is None else float(item.refused) for item in items if "must_answer" in item.tags
    ]
    return {name: mean_interval(values) for name, values in found.items() if any(v is not None for v in values)}


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights. Raises `UserError` when one is missing."""
    names = sorted(set(read_json(path / INDEX)["weight_map"].values())) if (path / INDEX).exists() else [SINGLE]
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise UserError(
            f"{path} has no {missing[0]}", "release a whole checkpoint; an adapter alone must be merged first"
        )
    return [path / name for name in names]


def checkpoint_size(path: Path) -> Size:
    """Parameters, bytes and FLOPs of a checkpoint directory, sharded or not."""
    files = weight_files(path)
    if unsupported(read_json(path / "config.json")):
        parameters = sum(_numbers(file) for file in files)
    else:
        parameters = ModelConfig.from_huggingface(path).parameters()
    return Size(parameters, sum(file.stat().st_size for file in files), 2 * parameters)


def _numbers(file: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def gather(name: str, checkpoint: Path, evaluation: Path, mode: Mode, part: Part, places: Places) -> Evidence:
    """Everything but tool stability."""
    items = read_items(evaluation, mode, part, places)
    return Evidence(
        name=name,
        size=checkpoint_size(checkpoint),
        items=items,
        metrics=metrics_of(items),
        answer_tokens=sum(item.tokens for item in items) / len(items),
    )
