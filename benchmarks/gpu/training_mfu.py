"""What share of a GPU's measured bfloat16 peak training reaches: a 0.6B model of Qwen3's shape, rows of 4096 tokens.

    python benchmarks/gpu/training_mfu.py           # needs a CUDA device, some three minutes
    python benchmarks/gpu/training_mfu.py --dry     # on the CPU, tiny, to see that it runs

The loop's own step (forward and backward under autocast, clip, fused AdamW over float32 weights) on random tokens, as
it stands and with the blocks compiled. Operations are counted as in `benchmarks/mfu.py`: six per parameter and token,
and for attention 12 x layers x heads x head size x T/2. `ratio` is the better of the two over the best square product
measured in the same process. Writes `results/gpu_training_mfu.json`. Not covered: sharded weights, activation
checkpointing.
"""

from __future__ import annotations

import statistics
from typing import Any

import device as gpu  # It lets the next ones be found.

# isort: split
import common
import torch
from mfu import operations

from loopline.training.batch import Batch
from loopline.training.config import OptimizerConfig
from loopline.training.loop import accumulate
from loopline.training.objectives import NextToken
from loopline.training.optimizer import build_optimizers


def measure(arguments: Any, device: torch.device, compiled: bool, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Step times of one form."""
    model = gpu.model(arguments, length, device, torch.float32).train()
    optimizers = build_optimizers(model, OptimizerConfig())
    if compiled:
        for block in model.blocks:
            block.compile()
    generator = torch.Generator().manual_seed(0)
    seconds: list[float] = []
    for _ in range(steps + 3):
        tokens = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
        gpu.synchronize(device)
        with common.timed(seconds):
            accumulate(model, NextToken(), [Batch(tokens)], "bfloat16")
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            gpu.synchronize(device)
    step = statistics.median(seconds[3:])
    count = rows * length
    rate = operations(model.config, count, length) / step
    return {
        "parameters": model.config.parameters(),
        "tokens_per_second": count / step,
        "seconds_per_step": seconds,
        "operations_per_second": rate,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }


def main() -> None:
    arguments = gpu.parse(__doc__)
    device = gpu.require(arguments)
    rows, length, steps = (1, 64, 1) if arguments.dry else (4, 4096, 10)
    peak = gpu.product_peak(device, torch.bfloat16)
    found: dict[str, Any] = {}
    # A tiny model is not worth a compiler's minute.
    for compiled in (False,) if arguments.dry else (False, True):
        runs = [measure(arguments, device, compiled, rows, length, steps) for _ in range(arguments.repeats)]
        shares = common.spread([run["operations_per_second"] / peak for run in runs])
        found["compiled" if compiled else "eager"] = {**shares, "runs": runs}
        print(
            f"{'compiled' if compiled else 'eager'}: {shares['ratio']:.1%} of {peak / 1e12:.0f} TFLOP/s, "
            f"{runs[0]['tokens_per_second']:.0f} tokens/s",
            flush=True,
        )
    best = max(found.values(), key=lambda row: row["ratio"])
    result = {
        **{name: best[name] for name in ("ratio", "low", "high")},
        "n": arguments.repeats,
        "what": "operations per second of a training step over those of the best bfloat16 product",
        "peak_operations_per_second": peak,
        "forms": found,
        "settings": {"rows": rows, "length": length, "steps": steps, "device": gpu.name(device)},
        "versions": common.versions(),
    }
    common.finish("gpu_training_mfu", result, arguments)


if __name__ == "__main__":
    main()
