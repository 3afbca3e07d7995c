"""What a value network costs and brings: GRPO and PPO from one checkpoint, on the same prompts, in one run.

    .venv/bin/python benchmarks/grpo_vs_ppo.py             # three seeds, some minutes
    .venv/bin/python benchmarks/grpo_vs_ppo.py --quick     # one seed, a small model, timed only, under 50 s

The task is sums of up to five numbers. A small decoder has been shown bare answers seven times in ten and worked ones
otherwise; the worked ones are right more often, which reinforcement learning is to find. Both algorithms run through
the stage `grpo` with the same settings: prompts, samples, lengths, learning rate, seeds; each run is its own process.
Each trains once in earnest, and once for a few steps at a learning rate of next to nothing, so that both sample the
same answers: that run gives `ratio`, PPO's seconds per step over GRPO's (above 1: GRPO is faster) with the lowest and
highest over the seeds, and `memory`, the ratio of peak memory over what the process held before, read from Linux's
/proc. Seconds are whole steps, from one line of the log to the next, so GRPO gains what it leaves out with groups
without a difference; `training` compares tokens trained per second alone. `reach` is the ratio of the seconds until
`window` steps of the earnest run have a mean reward of `level`, over the seeds on which both reach it. Writes
`benchmarks/results/grpo_vs_ppo.json`. Not covered: PPO with a value network smaller than the policy, with shared
weights, or taught before the policy moves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import loopline  # isort: skip  # Sets how torch's threads wait, before torch is loaded.

import torch
import worlds

from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.corpus import tokenizer as tokenizers
from loopline.evaluation.graders import graders
from loopline.grading.config import GradersConfig
from loopline.model.checkpoint import save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.posttrain.config import GRPOConfig
from loopline.posttrain.grpo import grpo
from loopline.posttrain.sft import sft
from loopline.posttrain.sft_config import SFTConfig
from loopline.store.artifact import Artifact, content_digest
from loopline.store.context import Context
from loopline.tasks.generators import arithmetic
from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import collect, random_for, rows
from loopline.training.config import OptimizerConfig, ScheduleConfig

RESULT = Path(__file__).resolve().parent / "results" / "grpo_vs_ppo.json"
ALGORITHMS = ("grpo", "ppo")
FULL: dict[str, Any] = {
    "seeds": 3,
    "shape": {"hidden_size": 128, "num_hidden_layers": 5, "intermediate_size": 352, "heads": 4},
    "tasks": 6000,
    "generator": {"max_terms": 5, "max_value": 12, "max_result": 60},
    "sft": {"steps": 400, "batch_size": 64},
    "rl": {"steps": 100, "prompts_per_step": 16, "group_size": 8, "max_new_tokens": 48},
    "timed_steps": 14,
    "in_earnest": True,
    "level": 0.6,
    "window": 8,
}
QUICK: dict[str, Any] = {
    "seeds": 1,
    "shape": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 176, "heads": 2},
    "tasks": 400,
    "generator": {"max_terms": 3, "max_value": 9, "max_result": 18},
    "sft": {"steps": 30, "batch_size": 32},
    "rl": {"steps": 5, "prompts_per_step": 8, "group_size": 4, "max_new_tokens": 24},
    "timed_steps": 5,
    "in_earnest": False,
    "level": 0.0,
    "window": 2,
}
LEARNING_RATE = 2e-4
STANDING = 1e-12
"""A learning rate at which the policy stays as it is."""
WARMUP = 2
"""First steps of a timed run, left out of its times."""
LAST = 10
"""Steps at the end of a run whose mean reward is reported."""


def artifact(path: Path, stage: str) -> Artifact:
    """The files below `path` as an artifact."""
    digest = content_digest(path)
    manifest = {"stage": stage, "kind": stage, "identity": digest, "digest": digest, "inputs": {}, "metrics": {}}
    write_json(path / "artifact.json", manifest)
    return Artifact.load(path)


def context(path: Path, seed: int, threads: int) -> Context:
    return Context("benchmark", path / "out", path / "state", seed, threads)


def prepare(root: Path, settings: dict[str, Any], threads: int) -> dict[str, Path]:
    """Tasks, audited graders, and a policy that solves some of the tasks."""
    config = GeneratorSettings(**settings["generator"])
    for part, count in (("train", settings["tasks"]), ("heldout", 50)):
        rng = random_for(0, "arithmetic", part)
        found = collect(lambda rng=rng, part=part: arithmetic.draw(rng, part, config), count, part)
        write_jsonl(root / "tasks" / f"{part}.jsonl", rows("arithmetic", part, "final_answer", found, ("reasoning",)))
    tasks = artifact(root / "tasks", "tasks")
    texts = [row["responses"][0]["messages"][0]["content"] for row in read_jsonl(root / "tasks" / "train.jsonl")]
    fast = tokenizers.train(texts, 272)
    tokenizers.save(fast, root / "tokenizer")
    shape = settings["shape"]
    model = ModelConfig(
        vocab_size=fast.get_vocab_size(),
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        head_dim=shape["hidden_size"] // shape["heads"],
        max_position_embeddings=128,
    )
    save_checkpoint(Decoder(model).initialize(torch.Generator().manual_seed(0)), root / "tokenizer", root / "base")
    settings["parameters"] = model.parameters()
    audited = context(root / "graders", 0, threads)
    graders(GradersConfig(), {"tasks": tasks}, audited)
    taught = context(root / "sft", 0, threads)
    lesson = SFTConfig(
        **settings["sft"],
        sequence_length=128,
        tasks={"arithmetic": 1.0},
        styles={"think": 0.3, "direct": 0.7},
        optimizer=OptimizerConfig(kind="muon", learning_rate=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(warmup=0.02, decay=0.4, final=0.0),
    )
    worlds.compile_sampling(root / "base")
    sft(lesson, {"tasks": tasks, "policy": artifact(root / "base", "base")}, taught)
    artifact(audited.out, "graders")
    artifact(taught.out, "sft")
    return {"tasks": root / "tasks", "graders": audited.out, "policy": taught.out}


def work(job: dict[str, Any]) -> None:
    """One run in this process: step times, rewards and peak memory go to `job["result"]`."""
    torch.set_num_threads(job["threads"])
    inputs = {name: Artifact.load(Path(path)) for name, path in job["inputs"].items()}
    config = GRPOConfig(
        algorithm=job["algorithm"],
        tasks=("arithmetic",),
        optimizer=OptimizerConfig(learning_rate=job["learning_rate"], weight_decay=0.0),
        divide="batches",
        **job["rl"],
    )
    ctx = context(Path(job["directory"]), job["seed"], job["threads"])
    log, ends = ctx.metrics.log, [time.perf_counter()]

    def noted(step: int, **values: float) -> None:
        log(step, **values)
        ends.append(time.perf_counter())

    ctx.metrics.log = noted  # type: ignore[method-assign]
    forget_peak()
    before = resident("VmRSS")
    grpo(config, inputs, ctx)
    held = resident("VmHWM") - before
    curve = read_jsonl(ctx.out / "log" / "metrics.jsonl")
    steps = [
        {
            "seconds": end - start,
            "sampling": row["seconds_sampling"],
            "training": row["tokens"] / row["tokens_per_second"] if row["tokens"] else 0.0,
            "tokens": row["tokens"],
            "reward": row["reward"],
        }
        for row, (start, end) in zip(curve, itertools.pairwise(ends), strict=True)
    ]
    write_json(Path(job["result"]), {"peak": held, "steps": steps})


def forget_peak() -> None:
    """Let the peak of this process's resident size start again from here."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(name: str) -> int:
    """This process's resident size (VmRSS) or its peak (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def run(job: dict[str, Any], directory: Path) -> dict[str, Any]:
    """`work` in a process of its own."""
    job = {**job, "directory": str(directory), "result": str(directory.with_suffix(".json"))}
    subprocess.run([sys.executable, __file__, "--job", json.dumps(job)], check=True)
    return dict(read_json(Path(job["result"])))


def spread(values: list[float]) -> dict[str, Any]:
    return {"ratio": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def reached(steps: list[dict[str, float]], level: float, window: int) -> float | None:
    """Seconds until `window` steps in a row have a mean reward of `level`; None where they never have."""
    seconds = 0.0
    for number, step in enumerate(steps, 1):
        seconds += step["seconds"]
        if number >= window and statistics.fmean(s["reward"] for s in steps[number - window : number]) >= level:
            return seconds
    return None


def measure(settings: dict[str, Any], threads: int) -> dict[str, Any]:
    """Every seed with both algorithms, one after the other."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ALGORITHMS}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        inputs = {name: str(path) for name, path in prepare(root, settings, threads).items()}
        job = {"inputs": inputs, "threads": threads}
        for seed in range(settings["seeds"]):
            # Who goes first changes with the seed, so that neither profits from a machine that warms up.
            for name in ALGORITHMS if seed % 2 == 0 else ALGORITHMS[::-1]:
                here = {**job, "algorithm": name, "seed": seed, "rl": settings["rl"]}
                brief = {**settings["rl"], "steps": settings["timed_steps"]}
                timed = run({**here, "rl": brief, "learning_rate": STANDING}, root / f"{name}-{seed}-timed")
                curve = timed["steps"]
                if settings["in_earnest"]:
                    curve = run({**here, "learning_rate": LEARNING_RATE}, root / f"{name}-{seed}")["steps"]
                steps = timed["steps"][WARMUP:]
                runs[name].append(
                    {
                        "seed": seed,
                        "seconds_per_step": statistics.median(step["seconds"] for step in steps),
                        "seconds_sampling": statistics.median(step["sampling"] for step in steps),
                        "seconds_training": statistics.median(step["training"] for step in steps),
                        "training_tokens": statistics.median(step["tokens"] for step in steps),
                        "training_tokens_per_second": sum(step["tokens"] for step in steps)
                        / max(sum(step["training"] for step in steps), 1e-9),
                        "peak_bytes": timed["peak"],
                        "reward_first": statistics.fmean(step["reward"] for step in curve[:LAST]),
                        "reward_last": statistics.fmean(step["reward"] for step in curve[-LAST:]),
                        "reach_seconds": reached(curve, settings["level"], settings["window"]),
                        "reward_curve": [round(step["reward"], 4) for step in curve],
                    }
                )
                print(
                    f"seed {seed} {name}: {runs[name][-1]['seconds_per_step']:.2f} s per step, "
                    f"{runs[name][-1]['peak_bytes'] / 2**20:.0f} MiB, reward {runs[name][-1]['reward_first']:.2f} -> "
                    f"{runs[name][-1]['reward_last']:.2f}",
                    flush=True,
                )
    pairs = list(zip(runs["grpo"], runs["ppo"], strict=True))
    both = [(a, b) for a, b in pairs if a["reach_seconds"] is not None and b["reach_seconds"] is not None]
    return {
        **spread([b["seconds_per_step"] / a["seconds_per_step"] for a, b in pairs]),
        "what": "PPO's seconds per step over GRPO's; above 1, GRPO is faster",
        "memory": spread([b["peak_bytes"] / a["peak_bytes"] for a, b in pairs]),
        "training": spread([a["training_tokens_per_second"] / b["training_tokens_per_second"] for a, b in pairs]),
        "reach": spread([b["reach_seconds"] / a["reach_seconds"] for a, b in both]) if both else None,
        "grpo": runs["grpo"],
        "ppo": runs["ppo"],
        "settings": {**settings, "threads": threads, "warmup_steps": WARMUP, "learning_rate": LEARNING_RATE},
        "versions": {
            "loopline": loopline.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed and a small model; writes no result")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        work(json.loads(arguments.job))
        return
    torch.set_num_threads(arguments.threads)
    result = measure(dict(QUICK if arguments.quick else FULL), arguments.threads)
    print(
        f"a PPO step takes {result['ratio']:.2f} times as long as GRPO's ({result['low']:.2f} to {result['high']:.2f}, "
        f"n = {result['n']}), training alone {result['training']['ratio']:.2f}, memory {result['memory']['ratio']:.2f}"
    )
    out = arguments.out or (None if arguments.quick else RESULT)
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    main()
