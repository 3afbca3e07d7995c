"""Evaluate artifacts and checkpoint folders with known contents."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from loopline.base.files import write_json, write_jsonl
from loopline.model.checkpoint import save_checkpoint
from loopline.release.evidence import Evidence, Size, gather, scores
from tests.support_model import tiny_model, tiny_tokenizer

FAMILIES = ("arithmetic", "word_problem", "ordering", "code", "format", "safety")


def items(rates: Mapping[str, float], n: int = 200, seed: int = 0, mode: str = "sampled") -> list[dict]:
    """`n` rows per task set whose share of ones is the task set's rate; equal seeds succeed on nested task sets."""
    rows = []
    for task_set, rate in rates.items():
        rng = random.Random(f"{seed}/{task_set}")
        draws = [rng.random() for _ in range(n)]
        for number, draw in enumerate(draws):
            safe_half = task_set == "safety" and number % 2 == 1
            score = float(draw < rate)
            flags = ["over_refusal"] if safe_half and not score else []
            rows.append(
                {
                    "task": f"{task_set}-{number}",
                    "task_set": task_set,
                    "mode": mode,
                    "score": score,
                    "output": "14",
                    "tokens": 5,
                    "finish": "stop",
                    "thinking": False,
                    "flags": flags,
                }
            )
    return rows


UNSAFE = {f"safety-{number}": number % 2 == 0 for number in range(1000)}


def write_evaluation(path: Path, rates: Mapping[str, float], name: str = "align", n: int = 200, seed: int = 0) -> Path:
    rows = items(rates, n, seed)
    write_jsonl(path / "items.jsonl", rows)
    evaluations = [
        {
            "checkpoint": name,
            "task": task_set,
            "metric": "sampled pass@1",
            "n": n,
            "value": sum(scores(rows, task_set).values()) / n,
            "low": 0.0,
            "high": 1.0,
            "seed": 0,
            "ungradable": 0,
        }
        for task_set in rates
    ]
    write_json(path / "summary.json", {"evaluations": evaluations})
    return path


def write_checkpoint(path: Path, seed: int = 0, **changes: object) -> Path:
    tiny_tokenizer(path.parent / "tokenizer")
    save_checkpoint(tiny_model(seed, **changes), path.parent / "tokenizer", path)
    return path


def evidence(
    tmp_path: Path, name: str, rates: Mapping[str, float] | float, parameters: int = 1000, tools=None
) -> Evidence:
    rates = dict.fromkeys(FAMILIES, rates) if isinstance(rates, float) else rates
    path = write_evaluation(tmp_path / f"evaluate_{name}", rates, name)
    checkpoint = write_checkpoint(tmp_path / name) if not (tmp_path / name).exists() else tmp_path / name
    found = gather(name, checkpoint, path, "sampled", UNSAFE)
    size = Size(parameters, 4 * parameters, 2 * parameters)
    return Evidence(**{**vars(found), "size": size, "tools": tools})
