"""Evaluations and checkpoint folders with known contents."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loopline.base.files import write_json, write_jsonl
from loopline.model.checkpoint import save_checkpoint
from loopline.release.evidence import Evidence, Size, gather, item_of
from tests.support_model import tiny_model, tiny_tokenizer

SETS = ("sums", "stories", "programs", "forms", "manners")
"""`manners` holds requests to refuse and requests to answer, in turn."""


def items(rates: Mapping[str, float], n: int = 200, seed: int = 0, mode: str = "sampled", part: str = "dev"):
    """`n` rows per set whose share of ones is the set's rate; equal seeds succeed on nested sets of tasks."""
    rows = []
    for name, rate in rates.items():
        rng = random.Random(f"{seed}/{name}/{part}")
        values = [rng.random() for _ in range(n)]
        for number, value in enumerate(values):
            tags = [("must_refuse", "must_answer")[number % 2]] if name == "manners" else ["plain"]
            score = float(value < rate)
            rows.append(
                {
                    "task": f"{name}-{part}-{number}",
                    "task_set": name,
                    "tags": tags,
                    "part": part,
                    "sample": 0,
                    "mode": mode,
                    "score": score,
                    "output": "14",
                    "tokens": 5,
                    "finish": "stop",
                    "flags": ["over_refusal"] if tags == ["must_answer"] and not score else [],
                }
            )
    return rows


def graded(*arguments, **options):
    """The same rows as the release sees them."""
    return tuple(item_of(row, tuple(row["tags"])) for row in items(*arguments, **options))


def write_evaluation(
    path: Path,
    rates: Mapping[str, float],
    name: str = "tuned",
    n: int = 200,
    seed: int = 0,
    heldout: Mapping[str, float] | None = None,
) -> Path:
    rows = items(rates, n, seed) + items(heldout or rates, n, seed, part="heldout")
    write_jsonl(path / "items.jsonl", rows)
    evaluations = [
        {
            "checkpoint": name,
            "task": task_set,
            "part": "heldout",
            "metric": "sampled pass@1",
            "n": n,
            "value": rate,
            "low": 0.0,
            "high": 1.0,
            "seed": 0,
            "ungradable": 0,
        }
        for task_set, rate in rates.items()
    ]
    write_json(path / "summary.json", {"evaluations": evaluations})
    return path


def write_checkpoint(path: Path, seed: int = 0, **changes: object) -> Path:
    tiny_tokenizer(path.parent / "tokenizer")
    save_checkpoint(tiny_model(seed, **changes), path.parent / "tokenizer", path)
    return path


def evidence(
    tmp_path: Path, name: str, rates: Mapping[str, float] | float, parameters: int = 1000, tools=None, seed: int = 0
) -> Evidence:
    rates = dict.fromkeys(SETS, rates) if isinstance(rates, float) else rates
    path = write_evaluation(tmp_path / f"evaluate_{name}", rates, name, seed=seed)
    checkpoint = write_checkpoint(tmp_path / name) if not (tmp_path / name).exists() else tmp_path / name
    found = gather(name, checkpoint, path, "sampled", "dev", {})
    return replace(found, size=Size(parameters, 4 * parameters, 2 * parameters), tools=tools)
