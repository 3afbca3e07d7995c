"""Fine-tuning against TRL's SFTTrainer with packing on, in non-padding tokens per second, at 1M and 20M parameters.

    pip install -e .[bench]
    python benchmarks/sft_vs_trl.py              # some 20 minutes
    python benchmarks/sft_vs_trl.py --quick      # small, under 50 s

Same checkpoint (Qwen3-shaped, random weights), documents, optimizer and threads; every token but a document's first is
a label. Lengths of documents are evenly spread on a logarithmic scale, many short and few long. TRL is set as its CPU
users should set it (no bfloat16, no gradient checkpointing) and takes the fastest of its settings: both packing
strategies, two row lengths, one or several rows at a time, two attention kernels. Its strategy "wrapped" cuts documents
at the ends of rows and lets them attend to their neighbours; "bfd", its default, does neither, as Loopline. The
fastest of all counts for `ratio`, the fastest of bfd for `same_loss`, and the result names every rate. A step is
everything between two steps. Ratios are medians over the repeats with the lowest and highest, each repeat a set of
fresh processes. Writes `results/sft_vs_trl.json`. Not covered: GPUs (see `gpu/`).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import worlds

from loopline.model.checkpoint import load_model
from loopline.store.context import Context
from loopline.training.batch import Example
from loopline.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from loopline.training.loop import train
from loopline.training.objectives import NextToken
from loopline.training.sources import ExampleSource

LEARNING_RATE = 1e-4
FULL: dict[str, dict[str, Any]] = {
    "1m": {"shortest": 16, "longest": 512, "tokens": 8192, "steps": 8},
    "20m": {"shortest": 16, "longest": 512, "tokens": 4096, "steps": 5},
}
QUICK: dict[str, dict[str, Any]] = {"tiny": {"shortest": 8, "longest": 128, "tokens": 1024, "steps": 3}}
WARMUP = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "bfd, a row of 1x": {"strategy": "bfd", "rows": 1, "times": 1, "attention": "sdpa"},
    "bfd, a row of 2x": {"strategy": "bfd", "rows": 1, "times": 2, "attention": "sdpa"},
    "bfd, 4 rows of 1x": {"strategy": "bfd", "rows": 4, "times": 1, "attention": "sdpa"},
    "bfd, a row of 1x, eager": {"strategy": "bfd", "rows": 1, "times": 1, "attention": "eager"},
    "wrapped, a row of 1x": {"strategy": "wrapped", "rows": 1, "times": 1, "attention": "sdpa"},
    "wrapped, 4 rows of 1x": {"strategy": "wrapped", "rows": 4, "times": 1, "attention": "sdpa"},
}
"""TRL's settings that are tried; lengths of rows in multiples of the longest document."""


def documents(job: dict[str, Any]) -> list[list[int]]:
    """Documents of random ids, enough for every step."""
    rng = np.random.default_rng(0)
    lengths = worlds.skewed_lengths(64, job["shortest"], job["longest"])
    wanted, found = job["tokens"] * (job["steps"] + 2), []
    while wanted > 0:
        for length in rng.permutation(lengths):
            found.append(rng.integers(10, job["vocab_size"], int(length)).tolist())
            wanted -= int(length)
    return found


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Loopline's side."""
    torch.set_num_threads(job["threads"])
    examples = [Example(ids, [1.0] * len(ids)) for ids in documents(job)]
    mean = statistics.fmean(len(example.tokens) for example in examples)
    model = load_model(Path(job["checkpoint"]))
    settings = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=job["learning_rate"], weight_decay=0.0),
        schedule=ScheduleConfig(warmup=0, decay=0),
        divide="batches",
    )
    source = ExampleSource(examples, round(job["tokens"] / mean), job["longest"], job["rows"], seed=job["seed"])
    ends: list[float] = []
    tokens: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        ctx = Context("benchmark", Path(directory) / "out", Path(directory) / "state", job["seed"], job["threads"])
        log = ctx.metrics.log

        def noted(step: int, **values: float) -> None:
            log(step, **values)
            ends.append(time.perf_counter())
            tokens.append(values["tokens"])

        ctx.metrics.log = noted  # type: ignore[method-assign]
        memory = common.Memory()
        started = time.perf_counter()
        train(model, NextToken(), source, job["steps"], settings, ctx)
    return result_of(started, ends, tokens, memory)


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's side."""
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(job["threads"])
    variant = VARIANTS[job["variant"]]
    checkpoint = job["checkpoint"]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=variant["attention"]
    )
    length = int(variant["times"] * job["longest"])
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        packing=True,
        packing_strategy=variant["strategy"],
        max_length=length,
        per_device_train_batch_size=variant["rows"],
        gradient_accumulation_steps=max(1, job["tokens"] // (length * variant["rows"])),
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        dataloader_num_workers=0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=job["seed"],
    )
    ends: list[float] = []
    micro: list[int] = []
    started: list[float] = []

    class Ends(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            started.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in documents(job)]),
        processing_class=transformers.AutoTokenizer.from_pretrained(checkpoint),
        callbacks=[Ends()],
    )
    collate = trainer.data_collator

    def counting(rows: list[dict[str, Any]]) -> Any:
        micro.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    trainer.data_collator = counting
    memory = common.Memory()
    trainer.train()
    size = settings.gradient_accumulation_steps
    tokens = [float(sum(micro[n * size : (n + 1) * size])) for n in range(len(ends))]
    return result_of(started[0], ends, tokens, memory)


def result_of(started: float, ends: list[float], tokens: list[float], memory: common.Memory) -> dict[str, Any]:
    return {
        "seconds": [b - a for a, b in zip([started, *ends], ends, strict=False)],
        "tokens": tokens,
        "peak_bytes": memory.peak,
        "held_bytes": memory.held,
    }


def rate(result: dict[str, Any]) -> float:
    """Tokens per second of the median step after the warm-up."""
    pairs = zip(result["tokens"][WARMUP:], result["seconds"][WARMUP:], strict=True)
    return statistics.median(count / seconds for count, seconds in pairs)


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tokens_per_second": [rate(result) for result in results],
        "step_seconds": [result["seconds"] for result in results],
        "step_tokens": [result["tokens"] for result in results],
        "peak_bytes": max(result["peak_bytes"] for result in results),
        "held_bytes": max(result["held_bytes"] for result in results),
    }


def compare(size: str, settings: dict[str, Any], threads: int, repeats: int, quick: bool) -> dict[str, Any]:
    """All rows of one size."""
    with tempfile.TemporaryDirectory() as directory:
        config = worlds.save_random(worlds.SHAPES[size], Path(directory), 4 * settings["longest"])
        job = {
            **settings,
            "checkpoint": directory,
            "vocab_size": config.vocab_size,
            "steps": WARMUP + settings["steps"],
            "learning_rate": LEARNING_RATE,
            "threads": threads,
            "rows": 2,
        }

        def run(side: str, seed: int, **changes: Any) -> dict[str, Any]:
            result = common.run_job(__file__, {**job, "side": side, "seed": seed, **changes})
            label = " ".join([side, *(str(value) for value in changes.values())])
            print(f"{size} {label}: {rate(result):.0f} tokens/s", flush=True)
            return result

        names = list(VARIANTS)[:1] if quick else list(VARIANTS)
        tried = {name: rate(run("trl", 100, variant=name, steps=WARMUP + 2)) for name in names}
        best = max(tried, key=lambda name: tried[name])
        same = max((name for name in names if VARIANTS[name]["strategy"] == "bfd"), key=lambda name: tried[name])
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", best, same)}
        for repeat, side in common.alternate(list(found), repeats):
            found[side].append(run("ours", repeat) if side == "ours" else run("trl", repeat, variant=side))

        def ratio(peer: str) -> dict[str, float]:
            return common.spread([rate(a) / rate(b) for a, b in zip(found["ours"], found[peer], strict=True)])

        pairs = list(zip(found["ours"], found[best], strict=True))
        return {
            **ratio(best),
            "same_loss": ratio(same),
            "n": repeats,
            "parameters": config.parameters(),
            "ours": summary(found["ours"]),
            "trl": {"variant": best, **VARIANTS[best], **summary(found[best])},
            "trl_same_loss": {"variant": same, **VARIANTS[same], **summary(found[same])},
            "trl_variants_tokens_per_second": tried,
            "memory": common.spread([b["held_bytes"] / a["held_bytes"] for a, b in pairs]),
            "settings": {**settings, "learning_rate": LEARNING_RATE, "warmup_steps": WARMUP},
        }


def main() -> None:
    arguments = common.parse(
        __doc__,
        lambda parser: (
            parser.add_argument("--sizes", default="1m,20m"),
            parser.add_argument("--repeats", type=int, default=3),
        ),
    )
    if arguments.job:
        job = json.loads(arguments.job)
        common.answer(job, {"ours": ours, "trl": trl}[job["side"]](job))
        return
    sizes = QUICK if arguments.quick else {size: FULL[size] for size in arguments.sizes.split(",")}
    repeats = 1 if arguments.quick else arguments.repeats
    rows = {
        size: compare(size, settings, arguments.threads, repeats, arguments.quick) for size, settings in sizes.items()
    }
    for size, row in rows.items():
        print(
            f"{size}: {row['ratio']:.2f} times TRL's tokens/s ({row['low']:.2f} to {row['high']:.2f}, n = {row['n']}), "
            f"memory held {row['memory']['ratio']:.2f} times ours; {row['same_loss']['ratio']:.2f} "
            f"({row['same_loss']['low']:.2f} to {row['same_loss']['high']:.2f}) where both keep documents apart"
        )
    first = next(iter(rows.values()))
    result = {
        **{name: first[name] for name in ("ratio", "low", "high", "n")},
        "what": "Loopline's non-padding tokens per second over TRL's with packing; the first size's at the top",
        "sizes": rows,
        "threads": arguments.threads,
        "versions": common.versions("trl", "transformers", "peft", "datasets"),
    }
    common.finish("sft_vs_trl", result, arguments)


if __name__ == "__main__":
    main()
