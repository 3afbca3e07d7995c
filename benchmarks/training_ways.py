"""What two ways of computing a training step gain on a CPU: micro-batches side by side, attention without a mask.

    .venv/bin/python benchmarks/training_ways.py             # 1M and 20M parameters, some four minutes
    .venv/bin/python benchmarks/training_ways.py --quick     # 1M, two repeats, under 50 s; writes no result

`divide`: seconds of forward and backward passes over a step's micro-batches with the threads sharing each operation,
over those with a micro-batch per thread (`training/side_by_side.py`). `attention`: with a mask over whole rows, over
those with each sequence attending to itself where that pays (`model/segments.py`). Documents of 16 to 512 ids, evenly
spread on a logarithmic scale, packed into rows; the sides take turns within one process, so a noisy machine hits both.
`ratio` is the median over the repeats' ratios with the lowest and highest; the one at the top is `divide`'s at 1M.
Writes `results/training_ways.json`. Not covered: the optimizer, GPUs.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from typing import Any

import common
import torch
import worlds

from loopline.model.decoder import Decoder
from loopline.training.batch import Batch, Example, pack
from loopline.training.loop import accumulate
from loopline.training.objectives import NextToken

FULL: dict[str, dict[str, Any]] = {
    "1m": {"tokens": 8192, "repeats": 5},
    "20m": {"tokens": 4096, "repeats": 3},
}
QUICK: dict[str, dict[str, Any]] = {"1m": {"tokens": 4096, "repeats": 2}}
SHORTEST, LONGEST = 16, 512
COMPARED: dict[str, dict[str, Any]] = {
    "divide, rows of 512, 2 at a time": {"row": 512, "rows": 2, "divide": ("operations", "batches")},
    "divide, rows of 512, 1 at a time": {"row": 512, "rows": 1, "divide": ("operations", "batches")},
    "attention, rows of 512, 2 at a time": {"row": 512, "rows": 2, "masked": (True, False)},
    "attention, rows of 2048, 1 at a time": {"row": 2048, "rows": 1, "masked": (True, False)},
}
"""Settings, and the two values that are compared: the slower one is expected first."""


def documents(vocabulary: int, tokens: int) -> list[Example]:
    """Documents of random ids, `tokens` of them at least."""
    generator = torch.Generator().manual_seed(0)
    lengths = worlds.skewed_lengths(64, SHORTEST, LONGEST)
    found: list[Example] = []
    while sum(len(example.tokens) for example in found) < tokens:
        length = lengths[int(torch.randint(len(lengths), (), generator=generator))]
        ids = torch.randint(10, vocabulary, (length,), generator=generator).tolist()
        found.append(Example(ids, [1.0] * length))
    return found


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of both sides, taking turns."""
    torch.set_num_threads(job["threads"])
    config = worlds.model_config(worlds.SHAPES[job["size"]], 4096)
    model = Decoder(config).initialize(torch.Generator().manual_seed(0)).train()
    examples = documents(config.vocab_size, job["tokens"])
    batches = pack(examples, job["row"], job["rows"])
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + job["repeats"]):
        for side in (0, 1):
            chosen = [without_segments(batch) for batch in batches] if job.get("masked", (0, 0))[side] else batches
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            accumulate(model, NextToken(), chosen, divide=job.get("divide", ("operations",) * 2)[side])
            seconds[side].append(time.perf_counter() - began)
    before, after = (times[1:] for times in seconds)
    tokens = sum(len(example.tokens) for example in examples)
    return {
        **common.spread([a / b for a, b in zip(before, after, strict=True)]),
        "n": job["repeats"],
        "micro_batches": len(batches),
        "seconds": {"before": before, "after": after},
        "tokens_per_second": {
            "before": tokens / statistics.median(before),
            "after": tokens / statistics.median(after),
        },
    }


def without_segments(batch: Batch) -> Batch:
    return replace(batch, segments=None)


def main() -> None:
    arguments = common.parse(str(__doc__))
    if arguments.job:
        job = json.loads(arguments.job)
        common.answer(job, measure(job))
        return
    rows: dict[str, dict[str, Any]] = {}
    for size, settings in (QUICK if arguments.quick else FULL).items():
        rows[size] = {}
        for name, compared in COMPARED.items():
            job = {"size": size, "threads": arguments.threads, **settings, **compared}
            row = rows[size][name] = common.run_job(__file__, job)
            print(f"{size} {name}: {row['ratio']:.2f} times ({row['low']:.2f} to {row['high']:.2f})", flush=True)
    first = rows["1m"][next(iter(COMPARED))]
    result = {
        **{key: first[key] for key in ("ratio", "low", "high", "n")},
        "sizes": rows,
        "threads": arguments.threads,
        "settings": {"sizes": QUICK if arguments.quick else FULL, "compared": COMPARED},
        "versions": common.versions(),
    }
    common.finish("training_ways", result, arguments)


if __name__ == "__main__":
    main()
