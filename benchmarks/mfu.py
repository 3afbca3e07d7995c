"""What share of the machine's matrix products training reaches, at 1M, 20M and 100M parameters.

    .venv/bin/python benchmarks/mfu.py             # some five minutes
    .venv/bin/python benchmarks/mfu.py --quick     # 1M, under 50 s; writes no result

The peak is measured in the same process, before and after: the best of square float32 products of several sizes.
Training is the loop's own step (forward, backward, clip, fused AdamW) on random tokens. Its operations are counted by
the usual formula: six per parameter and token (the output layer included, the embedding's look-up not), and for
attention 12 x layers x heads x head size x T/2 per token, half since it is causal; what normalization, rotation and the
optimizer add is not counted, so the share is a lower bound. `ratio` is the share at the largest size, with its lowest
and highest over the repeats. Writes `results/mfu.json`. Not covered: GPUs, mixed precision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import common
import torch
import worlds

from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.training.batch import Batch
from loopline.training.config import OptimizerConfig
from loopline.training.loop import accumulate
from loopline.training.objectives import NextToken
from loopline.training.optimizer import build_optimizers

SIZES: dict[str, dict[str, int]] = {
    "1m": {"rows": 16, "length": 256, "steps": 8},
    "20m": {"rows": 8, "length": 512, "steps": 3},
    "100m": {"rows": 4, "length": 512, "steps": 2},
}
PRODUCTS = (512, 1024, 2048)
REPEATS = 3


def peak(seconds: float = 0.6) -> float:
    """Operations per second of the best square product, each size tried for `seconds`."""
    best = 0.0
    for size in PRODUCTS:
        a, b = torch.randn(size, size), torch.randn(size, size)
        torch.mm(a, b)
        began, until = time.perf_counter(), time.perf_counter() + seconds
        while began < until:
            torch.mm(a, b)
            now = time.perf_counter()
            best, began = max(best, 2 * size**3 / (now - began)), now
    return best


def operations(config: ModelConfig, tokens: int, length: int) -> float:
    """Operations of one training step."""
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length / 2
    return tokens * (6.0 * (config.parameters() - looked_up) + attention)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of training steps of one size, between two measurements of the peak."""
    torch.set_num_threads(job["threads"])
    config = worlds.model_config(worlds.SHAPES[job["size"]], job["length"])
    model = Decoder(config).initialize(torch.Generator().manual_seed(0)).train()
    optimizers = build_optimizers(model, OptimizerConfig())
    generator = torch.Generator().manual_seed(job["seed"])
    before = peak()
    memory = common.Memory()
    seconds: list[float] = []
    for _ in range(1 + job["steps"]):
        tokens = torch.randint(config.vocab_size, (job["rows"], job["length"]), generator=generator)
        with common.timed(seconds):
            accumulate(model, NextToken(), [Batch(tokens)])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    best = max(before, peak())
    count = job["rows"] * job["length"]
    step = statistics.median(seconds[1:])
    return {
        "parameters": config.parameters(),
        "tokens_per_second": count / step,
        "operations_per_second": operations(config, count, job["length"]) / step,
        "peak_operations_per_second": best,
        "share": operations(config, count, job["length"]) / step / best,
        "seconds_per_step": step,
        "peak_bytes": memory.peak,
    }


def main() -> None:
    """Every size, each repeat in a process of its own."""
    arguments: argparse.Namespace = common.parse(__doc__)
    if arguments.job:
        job = json.loads(arguments.job)
        common.answer(job, measure(job))
        return
    sizes = {"1m": SIZES["1m"]} if arguments.quick else SIZES
    rows: dict[str, Any] = {}
    for size, settings in sizes.items():
        runs = []
        for repeat in range(1 if arguments.quick else REPEATS):
            job = {"size": size, "threads": arguments.threads, "seed": repeat, **settings}
            runs.append(common.run_job(__file__, job))
        rows[size] = {**common.spread([run["share"] for run in runs]), "runs": runs, "settings": settings}
        row = rows[size]
        print(
            f"{size}: {row['ratio']:.0%} of the peak ({row['low']:.0%} to {row['high']:.0%}), "
            f"{statistics.median(run['tokens_per_second'] for run in runs):.0f} tokens/s",
            flush=True,
        )
    last = rows[list(sizes)[-1]]
    result = {
        **{name: last[name] for name in ("ratio", "low", "high")},
        "n": len(last["runs"]),
        "what": "operations per second of a training step over those of the best float32 matrix product",
        "sizes": rows,
        "threads": arguments.threads,
        "versions": common.versions(),
    }
    common.finish("mfu", result, arguments)


if __name__ == "__main__":
    main()
