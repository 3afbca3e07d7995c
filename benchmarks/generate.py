"""Tokens per second of the engine beside transformers: `generate` and continuous batching, groups of 8 per prompt.

    .venv/bin/python benchmarks/generate.py                # 1M, 20M and 100M parameters, some 20 minutes
    .venv/bin/python benchmarks/generate.py --quick        # 1M, one repeat, under 50 s; writes no result

The same random weights, prompts, temperature 1 without top-k and top-p, stop ids and token limit on all sides. Several
ids of the vocabulary stop a row, so lengths are about geometric, many short and few long, as answers are; only tokens
up to and including the stop count. Each run is a process of its own that warms up first. Each side may take all rows at
once or a part at a time; each way is tried once before, and the fastest one is repeated. `ratio` is our tokens per
second over the faster peer's; `generate` and `continuous` are the ratios to each. The engine also returns log-probs,
which the peers are not asked for. `held_bytes` is what sampling adds to resident memory at its peak. Writes
`benchmarks/results/generate.json`. Not covered: compiled models, GPUs, quantized weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import loopline  # noqa: F401 # isort: skip  # Sets how torch's threads wait, before torch is loaded.

import common
import torch
import worlds

from loopline.chat.load import load_tokenizer
from loopline.inference.engine import Sampling, TorchEngine

SIDES = ("ours", "generate", "continuous")
SIZES: dict[str, dict[str, Any]] = {
    "1m": {"prompts": 32, "mean_tokens": 48, "max_new_tokens": 256, "rows": 128, "repeats": 3},
    "20m": {"prompts": 16, "mean_tokens": 48, "max_new_tokens": 256, "rows": 64, "repeats": 3},
    "100m": {"prompts": 8, "mean_tokens": 32, "max_new_tokens": 160, "rows": 64, "repeats": 3},
}
QUICK: dict[str, dict[str, Any]] = {
    "1m": {"prompts": 8, "mean_tokens": 24, "max_new_tokens": 96, "rows": 64, "repeats": 1},
}
GROUP = 8
PROMPT_LENGTHS = (16, 64)


def counted(rows: Sequence[Sequence[int]], stops: Sequence[int], limit: int) -> list[int]:
    """Tokens of each row up to and including the first stop, `limit` at most."""
    ends = set(stops)
    lengths = []
    for row in rows:
        length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        lengths.append(min(length, limit))
    return lengths


def ours(job: dict[str, Any], stops: tuple[int, ...]) -> Callable[[Sequence[list[int]], int, int], list[list[int]]]:
    """A function (prompts, limit, seed) -> sampled rows."""
    engine = TorchEngine.from_checkpoint(Path(job["checkpoint"]), batch_size=job["rows"])

    def run(prompts: Sequence[list[int]], limit: int, seed: int) -> list[list[int]]:
        groups = engine.generate(prompts, Sampling(limit, n=GROUP, seed=1000 * seed, stop_token_ids=stops))
        return [completion.token_ids for group in groups for completion in group]

    return run


def theirs(job: dict[str, Any], stops: tuple[int, ...]) -> Callable[[Sequence[list[int]], int, int], list[list[int]]]:
    """The same for transformers."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.float32).eval()

    def settings(limit: int) -> Any:
        return transformers.GenerationConfig(
            max_new_tokens=limit,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=GROUP,
            eos_token_id=list(stops),
            pad_token_id=0,
        )

    def generate(prompts: Sequence[list[int]], limit: int, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        step = max(1, job["rows"] // GROUP)
        # Sorted by length like ours, so that a batch has little padding.
        ordered = sorted(prompts, key=len)
        rows: list[list[int]] = []
        for start in range(0, len(ordered), step):
            part = ordered[start : start + step]
            longest = max(map(len, part))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in part])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part])
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings(limit))
            rows += out[:, longest:].tolist()
        return rows

    def continuous(prompts: Sequence[list[int]], limit: int, seed: int) -> list[list[int]]:
        rows, longest = job["rows"], max(map(len, prompts))
        pages = -(-(longest + limit) // 32) + 1
        batching = transformers.generation.configuration_utils.ContinuousBatchingConfig(
            page_size=32,
            num_blocks=pages * rows,
            max_batch_tokens=max(rows, 2 * longest),
            max_requests_per_batch=rows,
            use_cuda_graph=False,
            seed=seed,
        )
        out = model.generate_batch(list(prompts), settings(limit), continuous_batching_config=batching)
        return [list(result.generated_tokens) for result in out.values()]

    return generate if job["side"] == "generate" else continuous


def run_side(job: dict[str, Any]) -> dict[str, Any]:
    """One run of one side in this process."""
    torch.set_num_threads(job["threads"])
    checkpoint = Path(job["checkpoint"])
    stops = worlds.stop_ids(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    lengths = worlds.skewed_lengths(job["prompts"], *PROMPT_LENGTHS)
    prompts = [tokenizer.encode(text) for text in worlds.make_prompts(checkpoint, lengths, job["seed"])]
    run = (ours if job["side"] == "ours" else theirs)(job, stops)
    run(prompts[: min(4, len(prompts))], 8, 0)
    memory = common.Memory()
    began = time.perf_counter()
    rows = run(prompts, job["max_new_tokens"], job["seed"])
    seconds = time.perf_counter() - began
    if len(rows) != GROUP * len(prompts):
        raise RuntimeError(f"{len(rows)} rows came back for {len(prompts)} prompts with {GROUP} samples each")
    sizes = counted(rows, stops, job["max_new_tokens"])
    return {
        "seconds": seconds,
        "tokens": sum(sizes),
        "mean_length": sum(sizes) / len(sizes),
        "longest": max(sizes),
        "held_bytes": memory.held,
        "peak_bytes": memory.peak,
    }


def rate(result: dict[str, Any]) -> float:
    """Tokens per second."""
    return float(result["tokens"] / result["seconds"])


def compare(size: str, settings: dict[str, Any], threads: int, directory: Path) -> dict[str, Any]:
    """All sides at one size."""
    checkpoint = directory / size
    length = PROMPT_LENGTHS[1] + settings["max_new_tokens"] + 64
    config = worlds.save_random(worlds.SHAPES[size], checkpoint, length, settings["mean_tokens"])
    base = {"checkpoint": str(checkpoint), "threads": threads, **settings}
    everything = settings["prompts"] * GROUP

    def run(side: str, seed: int, rows: int) -> dict[str, Any]:
        result = common.run_job(__file__, {**base, "side": side, "seed": seed, "rows": rows})
        print(
            f"{size} {side:10} {rows:4} rows at once: {rate(result):8.0f} tokens/s, mean length "
            f"{result['mean_length']:.0f}, holds {result['held_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )
        return result

    chosen = {}
    ways = sorted({settings["rows"], everything})
    for side in SIDES:
        speeds = {rows: rate(run(side, 100, rows)) for rows in ways} if len(ways) > 1 else {ways[0]: 0.0}
        chosen[side] = max(speeds, key=lambda rows: speeds[rows])
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat, side in common.alternate(SIDES, settings["repeats"]):
        results[side].append(run(side, repeat, chosen[side]))
    ratios = {
        side: [rate(mine) / rate(peer) for mine, peer in zip(results["ours"], results[side], strict=True)]
        for side in SIDES[1:]
    }
    faster = [min(pair) for pair in zip(*ratios.values(), strict=True)]
    return {
        **common.spread(faster),
        "generate": common.spread(ratios["generate"]),
        "continuous": common.spread(ratios["continuous"]),
        "n": settings["repeats"],
        "parameters": config.parameters(),
        "group": GROUP,
        "settings": settings,
        "rows_at_once": chosen,
        "runs": results,
    }


def main() -> None:
    def add(parser: Any) -> None:
        parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=None)

    arguments = common.parse(str(__doc__), add)
    if arguments.job:
        job = json.loads(arguments.job)
        common.answer(job, run_side(job))
        return
    sizes = QUICK if arguments.quick else {name: SIZES[name] for name in arguments.sizes or SIZES}
    with tempfile.TemporaryDirectory() as directory:
        results = {
            size: compare(size, settings, arguments.threads, Path(directory)) for size, settings in sizes.items()
        }
    first = next(iter(results.values()))
    for size, result in results.items():
        print(f"{size}: {result['ratio']:.2f} times the faster peer ({result['low']:.2f} to {result['high']:.2f})")
    result = {
        **{key: first[key] for key in ("ratio", "low", "high", "n")},
        "sizes": results,
        "threads": arguments.threads,
        "versions": common.versions("transformers"),
    }
    common.finish("generate", result, arguments)


if __name__ == "__main__":
    main()
