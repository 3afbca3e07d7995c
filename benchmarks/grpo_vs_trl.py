"""A whole GRPO step against TRL's, in samples per second, at 1M and 100M parameters; and the time to a reward.

    pip install -e .[bench]
    python benchmarks/grpo_vs_trl.py                 # both sizes, some 40 minutes
    python benchmarks/grpo_vs_trl.py --threshold     # time to the same reward, three seeds
    python benchmarks/grpo_vs_trl.py --quick         # small, under 50 s

Same checkpoint (Qwen3-shaped, random weights), prompts, reward, group size, lengths and threads. A step is everything
between two steps: prompts rendered, answers sampled, decoded and rewarded, loss, gradient, clip, AdamW, logging. TRL is
set as its CPU users should set it (no bfloat16, which this kind of processor emulates; no gradient checkpointing; no
reference model) and takes the fastest of its two ways to sample, `model.generate` and continuous batching, each with a
forward pass over the whole step and with smaller ones; at 1M a further row has TRL at its defaults. The reward pays
every second sample of a group, so every group carries signal and nothing is left out on either side; Loopline's
leaving out of groups without signal is a row of its own, on a reward that leaves half of the groups without one. One id
in `mean_tokens` of the vocabulary ends an answer, on both sides, so lengths are geometric and cut at `max_new_tokens`;
the result states those that were sampled. `ratio` is the median over the repeats with the lowest and highest, each
repeat a pair of fresh processes. With `--threshold` both sides start from one checkpoint that adds numbers a little,
train with the same settings until the mean reward of `window` steps reaches `threshold`, and `ratio` is TRL's seconds
over ours. Writes `results/grpo_vs_trl.json` and `results/grpo_threshold_vs_trl.json`. Not covered: GPUs (see `gpu/`).
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import common
import torch
import worlds

from loopline.chat.load import load_tokenizer
from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.grading.reward import RewardConfig
from loopline.inference.engine import TorchEngine
from loopline.model.checkpoint import load_model
from loopline.rl.collect import Collector
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.objective import GRPO
from loopline.rl.rollout import RolloutSource
from loopline.rl.rollout_config import RolloutConfig
from loopline.store.context import Context
from loopline.tasks.task import Task
from loopline.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from loopline.training.loop import train

GROUP = 8
LEARNING_RATE = 1e-6
FULL: dict[str, dict[str, Any]] = {
    "1m": {
        "prompts": 16,
        "shortest": 16,
        "longest": 96,
        "max_new_tokens": 128,
        "mean_tokens": 40.0,
        "steps": 6,
        "tries": 2,
    },
    "100m": {
        "prompts": 4,
        "shortest": 16,
        "longest": 96,
        "max_new_tokens": 128,
        "mean_tokens": 40.0,
        "steps": 2,
        "tries": 1,
    },
}
QUICK: dict[str, dict[str, Any]] = {
    "tiny": {
        "prompts": 4,
        "shortest": 8,
        "longest": 32,
        "max_new_tokens": 32,
        "mean_tokens": 10.0,
        "steps": 3,
        "tries": 1,
    },
}
DEFAULTS_BELOW = 10_000_000
"""Parameters up to which the further rows are measured: TRL at its defaults takes minutes for a larger model's step."""
MICRO_BATCH = 16
"""Samples of one forward pass where TRL's step is split."""
TRL_TUNED: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_dropout": True,
    "beta": 0.0,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "epsilon": 0.2,
    "num_iterations": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "shuffle_dataset": False,
    "dataloader_num_workers": 0,
    "weight_decay": 0.0,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
}
THRESHOLD: dict[str, Any] = {
    "seeds": 3,
    "threshold": 0.7,
    "window": 8,
    "most_steps": 120,
    "prompts": 16,
    "max_new_tokens": 48,
    "learning_rate": 2e-4,
    "teaching_steps": 250,
    "tries": 2,
}
QUICK_THRESHOLD = {**THRESHOLD, "seeds": 1, "threshold": 0.0, "window": 2, "prompts": 4, "teaching_steps": 12}
Reward = Callable[[Sequence[str], Sequence[str]], list[float]]


def every_second(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Pays every second sample of a group: every group carries signal, whatever was sampled."""
    return [float(number % 2) for number in range(len(texts))]


def half_silent(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Pays every second sample of every second group, and none of the others."""
    return [float(number % 2 and number // GROUP % 2) for number in range(len(texts))]


def solved(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Pays a final answer that is the task's."""
    return [float(split_thinking(text)[1] == answer) for text, answer in zip(texts, answers, strict=True)]


REWARDS: dict[str, Reward] = {"every_second": every_second, "half_silent": half_silent, "solved": solved}


@dataclass
class Clock:
    """Ends of steps, and what was sampled."""

    ends: list[float] = field(default_factory=list)
    sampling: list[float] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def end(self) -> None:
        self.ends.append(time.perf_counter())

    def reached(self, threshold: float, window: int) -> bool:
        recent = self.rewards[-window:]
        return len(recent) == window and statistics.fmean(recent) >= threshold

    def result(self, memory: common.Memory) -> dict[str, Any]:
        flat = [length for step in self.lengths for length in step]
        return {
            "seconds": [b - a for a, b in zip([self.started, *self.ends], self.ends, strict=False)],
            "sampling": self.sampling,
            "samples": len(self.lengths[0]) if self.lengths else 0,
            "mean_length": statistics.fmean(flat),
            "deciles": statistics.quantiles(flat, n=10),
            "rewards": self.rewards,
            "peak_bytes": memory.peak,
            "held_bytes": memory.held,
        }


class Reached(Exception):
    """The reward is where it should be."""


class FunctionGraders:
    """A reward function where the rollouts expect a set of graders."""

    def __init__(self, reward: Reward, clock: Clock) -> None:
        self.reward, self.clock = reward, clock

    def grade(self, samples: Sequence[Sample], name: str | None = None) -> list[Grade]:
        scores = self.reward([s.text for s in samples], [s.task.answer for s in samples])
        self.clock.rewards.append(statistics.fmean(scores))
        return [Grade(score) for score in scores]

    def uses_sandbox(self, names: set[str]) -> bool:
        return False


class TimedEngine(TorchEngine):
    """The engine, stopping where the checkpoint says, with its time and lengths noted."""

    clock: Clock
    stops: tuple[int, ...]

    def generate(self, prompts: Any, sampling: Any, *rest: Any, **named: Any) -> Any:
        with common.timed(self.clock.sampling):
            groups = super().generate(prompts, replace(sampling, stop_token_ids=self.stops), *rest, **named)
        self.clock.lengths.append([len(c.token_ids) for group in groups for c in group])
        return groups


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Loopline's side: its own loop, source and objective."""
    torch.set_num_threads(job["threads"])
    checkpoint = Path(job["checkpoint"])
    policy = load_model(checkpoint, job.get("device", "cpu"))
    engine = TimedEngine(policy, load_tokenizer(checkpoint))
    clock = engine.clock = Clock()
    engine.stops = worlds.stop_ids(checkpoint)
    tasks = [Task.model_validate(row) for row in job["tasks"]]
    config = PolicyGradientConfig(
        prompts_per_step=job["prompts"],
        group_size=GROUP,
        max_new_tokens=job["max_new_tokens"],
        drop_zero_signal=job.get("drop_zero_signal", False),
    )
    settings = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=job["learning_rate"], weight_decay=0.0),
        schedule=ScheduleConfig(warmup=0, decay=0),
        precision=job.get("precision", "float32"),
        divide="batches",
    )
    threshold = job.get("threshold")
    with tempfile.TemporaryDirectory() as directory:
        ctx = Context("benchmark", Path(directory) / "out", Path(directory) / "state", job["seed"], job["threads"])
        graders: Any = FunctionGraders(REWARDS[job["reward"]], clock)
        one = {"prompts": 1.0}
        seed = ctx.seed_for("rollouts")
        collector = Collector(engine, {"prompts": tasks}, one, graders, RewardConfig(), config, RolloutConfig(), seed)
        source = RolloutSource(collector, ctx.state / "rollouts")
        log = ctx.metrics.log

        def noted(step: int, **values: float) -> None:
            log(step, **values)
            clock.end()
            if threshold is not None and clock.reached(threshold, job["window"]):
                raise Reached

        ctx.metrics.log = noted  # type: ignore[method-assign]
        memory = common.Memory()
        clock.started = time.perf_counter()
        with contextlib.suppress(Reached):
            train(policy, GRPO.from_config(config), source, job["steps"], settings, ctx)
    return clock.result(memory)


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's side: GRPOTrainer on the same checkpoint."""
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job["threads"])
    checkpoint = Path(job["checkpoint"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa"
    )
    clock = Clock()
    chosen = REWARDS[job["reward"]]
    threshold = job.get("threshold")

    def reward(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        stops = set(worlds.stop_ids(checkpoint))
        clock.lengths.append([len(ids) for ids in completion_ids])
        texts = [tokenizer.decode(ids[:-1] if ids[-1] in stops else ids) for ids in completion_ids]
        scores = chosen(texts, answer)
        clock.rewards.append(statistics.fmean(scores))
        return scores

    class Ends(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.end()
            if threshold is not None and clock.reached(threshold, job["window"]):
                control.should_training_stop = True

    samples = job["prompts"] * GROUP
    tuned = job["variant"] != "defaults"
    micro = min(MICRO_BATCH, samples) if job["variant"].endswith("split") else samples
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": job.get("device", "cpu") == "cpu",
        "num_generations": GROUP,
        "max_completion_length": job["max_new_tokens"],
        "learning_rate": job["learning_rate"],
        "max_steps": job["steps"],
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": job["seed"],
    }
    if tuned:
        settings |= {
            **TRL_TUNED,
            "bf16": job.get("precision") == "bfloat16",
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": samples // micro,
            "steps_per_generation": samples // micro,
        }
        if job["variant"].startswith("continuous"):
            settings |= {
                "use_transformers_continuous_batching": True,
                "transformers_continuous_batching_config": {"use_cuda_graph": False},
            }
    rows = [
        {"prompt": list(row["messages"]), "answer": row["answer"]}
        for row in (job["tasks"] * job["steps"])[: job["prompts"] * job["steps"]]
    ]
    if threshold is not None:
        # Epochs in an order of their own, as the other side has.
        settings["shuffle_dataset"] = True
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Ends()],
    )
    generate = trainer._generate_single_turn

    def timed_generate(*args: Any, **named: Any) -> Any:
        with common.timed(clock.sampling):
            return generate(*args, **named)

    trainer._generate_single_turn = timed_generate
    check_prompts(trainer, rows[: job["prompts"]], checkpoint)
    memory = common.Memory()
    trainer.train()
    return clock.result(memory)


def check_prompts(trainer: Any, rows: list[dict[str, Any]], checkpoint: Path) -> None:
    """Refuse to compare different prompts."""
    tokenizer = load_tokenizer(checkpoint)
    theirs, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
    mine = [tokenizer.render(row["prompt"], add_generation_prompt=True) for row in rows]
    if [list(ids) for ids in theirs] != mine:
        raise RuntimeError("the two sides would not see the same prompts")


WARMUP = 1


def rate(result: dict[str, Any]) -> float:
    """Samples per second over the median step after the warm-up."""
    return float(result["samples"] / statistics.median(result["seconds"][WARMUP:]))


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One side's raw figures over the repeats."""
    steps = [second for result in results for second in result["seconds"][WARMUP:]]
    sampling = [second for result in results for second in result["sampling"][WARMUP:]]
    return {
        "samples_per_second": [rate(result) for result in results],
        "seconds_per_step": statistics.median(steps),
        "seconds_sampling": statistics.median(sampling),
        "seconds_training": statistics.median(steps) - statistics.median(sampling),
        "step_seconds": [result["seconds"] for result in results],
        "mean_length": statistics.fmean(result["mean_length"] for result in results),
        "length_deciles": results[0]["deciles"],
        "peak_bytes": max(result["peak_bytes"] for result in results),
        "held_bytes": max(result["held_bytes"] for result in results),
    }


def fastest(
    run: Callable[..., dict[str, Any]], tries: int, sampling: Sequence[str] = ("generate", "continuous")
) -> dict[str, float]:
    """Samples per second of TRL's variants, the best first: each way to sample, the step whole and split.

    Of each the best of `tries` steps after the warm-up.
    """
    tried = {}
    splits = ("", "_split")
    for way in sampling:
        for split in splits:
            result = run("trl", 100, variant=way + split, steps=WARMUP + tries)
            tried[way + split] = result["samples"] / min(result["seconds"][WARMUP:])
        # Splitting matters to training alone, so what was faster with one way to sample is with the other.
        splits = (max(splits, key=lambda split: tried[way + split]),)
    return dict(sorted(tried.items(), key=lambda item: -item[1]))


def compare_steps(
    size: str,
    settings: dict[str, Any],
    threads: int,
    repeats: int,
    quick: bool,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All rows of one size; `changes` go to both sides' jobs."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory)
        length = 2 * (settings["longest"] + settings["max_new_tokens"])
        parameters = worlds.save_random(worlds.SHAPES[size], checkpoint, length, settings["mean_tokens"]).parameters()
        lengths = worlds.skewed_lengths(settings["prompts"], settings["shortest"], settings["longest"])
        job = {
            "checkpoint": directory,
            "tasks": worlds.as_tasks(worlds.make_prompts(checkpoint, lengths, seed=0)),
            "prompts": settings["prompts"],
            "max_new_tokens": settings["max_new_tokens"],
            "steps": WARMUP + settings["steps"],
            "learning_rate": LEARNING_RATE,
            "reward": "every_second",
            "threads": threads,
            **(changes or {}),
        }

        def run(side: str, seed: int, **changes: Any) -> dict[str, Any]:
            result = common.run_job(__file__, {**job, "side": side, "seed": seed, **changes})
            label = " ".join([side, *(f"{name}={value}" for name, value in changes.items())])
            print(f"{size} {label}: {rate(result):.2f} samples/s, mean length {result['mean_length']:.1f}", flush=True)
            return result

        tried = {"generate": 0.0} if quick else fastest(run, settings["tries"])
        best = next(iter(tried))
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
        for repeat, side in common.alternate(("ours", "trl"), repeats):
            found[side].append(run(side, repeat, **({"variant": best} if side == "trl" else {})))
        ratios = [rate(a) / rate(b) for a, b in zip(found["ours"], found["trl"], strict=True)]
        result = {
            **common.spread(ratios),
            "n": repeats,
            "parameters": parameters,
            "ours": summary(found["ours"]),
            "trl": {"variant": best, **summary(found["trl"])},
            "trl_variants_samples_per_second": tried,
            "memory": common.spread(
                [b["held_bytes"] / a["held_bytes"] for a, b in zip(found["ours"], found["trl"], strict=True)]
            ),
            "settings": {**settings, "group_size": GROUP, "learning_rate": LEARNING_RATE, "warmup_steps": WARMUP},
        }
        if not quick and parameters < DEFAULTS_BELOW:
            result["trl_defaults"] = summary([run("trl", 0, variant="defaults", steps=WARMUP + 1)])
            silent = [run("ours", 0, reward="half_silent", drop_zero_signal=drop) for drop in (False, True)]
            result["without_zero_signal_groups"] = {
                "ratio": rate(silent[1]) / rate(silent[0]),
                "what": "our step with half of the groups without signal: left out over kept",
            }
        return result


def compare_threshold(settings: dict[str, Any], threads: int, quick: bool) -> dict[str, Any]:
    """Seconds to the same reward from the same checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        torch.set_num_threads(threads)
        tasks = worlds.teach_additions(root, settings["teaching_steps"])
        worlds.compile_sampling(root)
        job = {
            "checkpoint": directory,
            "tasks": tasks,
            "prompts": settings["prompts"],
            "max_new_tokens": settings["max_new_tokens"],
            "steps": settings["most_steps"],
            "learning_rate": settings["learning_rate"],
            "reward": "solved",
            "threads": threads,
            "threshold": settings["threshold"],
            "window": settings["window"],
        }

        def run(side: str, seed: int, **changes: Any) -> dict[str, Any]:
            return common.run_job(__file__, {**job, "threshold": None, "side": side, "seed": seed, **changes})

        best = "generate" if quick else next(iter(fastest(run, settings["tries"])))
        sides: dict[str, dict[str, Any]] = {
            "ours": {"side": "ours"},
            "trl": {"side": "trl", "variant": best},
            "ours_dropping": {"side": "ours", "drop_zero_signal": True},
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for seed, name in common.alternate(tuple(sides), settings["seeds"]):
            result = common.run_job(__file__, {**job, **sides[name], "seed": seed})
            reached = Clock(rewards=result["rewards"]).reached(settings["threshold"], settings["window"])
            row = {
                "seed": seed,
                "reached": reached,
                "seconds": sum(result["seconds"]),
                "steps": len(result["seconds"]),
                "peak_bytes": result["peak_bytes"],
                "held_bytes": result["held_bytes"],
                "rewards": [round(value, 4) for value in result["rewards"]],
            }
            found[name].append(row)
            print(
                f"seed {seed} {name}: {row['seconds']:.1f} s, {row['steps']} steps, reward "
                f"{statistics.fmean(row['rewards'][:3]):.2f} -> {statistics.fmean(row['rewards'][-3:]):.2f}",
                flush=True,
            )

        def ratios(ours_name: str) -> dict[str, float]:
            pairs = zip(found["trl"], found[ours_name], strict=True)
            return common.spread([theirs["seconds"] / mine["seconds"] for theirs, mine in pairs])

        return {
            **ratios("ours"),
            "n": settings["seeds"],
            "what": "TRL's seconds to the reward over ours, the same samples trained on",
            "reached": {name: sum(row["reached"] for row in rows) for name, rows in found.items()},
            "without_zero_signal_groups": ratios("ours_dropping"),
            **found,
            "settings": {**settings, "group_size": GROUP, "threads": threads},
            "trl_settings": {**TRL_TUNED, "variant": best},
            "versions": common.versions("trl", "transformers", "peft", "datasets"),
        }


def main() -> None:
    arguments = common.parse(
        __doc__,
        lambda parser: (
            parser.add_argument("--threshold", action="store_true", help="time to the same reward"),
            parser.add_argument("--sizes", default="1m,100m"),
            parser.add_argument("--repeats", type=int, default=3),
        ),
    )
    if arguments.job:
        job = json.loads(arguments.job)
        common.answer(job, {"ours": ours, "trl": trl}[job["side"]](job))
        return
    if arguments.threshold:
        result = compare_threshold(
            QUICK_THRESHOLD if arguments.quick else THRESHOLD, arguments.threads, arguments.quick
        )
        print(
            f"TRL takes {result['ratio']:.2f} ({result['low']:.2f} to {result['high']:.2f}) times as long to the reward"
        )
        common.finish("grpo_threshold_vs_trl", result, arguments)
        return
    sizes = QUICK if arguments.quick else {size: FULL[size] for size in arguments.sizes.split(",")}
    repeats = 1 if arguments.quick else arguments.repeats
    rows = {
        size: compare_steps(size, settings, arguments.threads, repeats, arguments.quick)
        for size, settings in sizes.items()
    }
    for size, row in rows.items():
        print(
            f"{size}: {row['ratio']:.2f} times TRL's samples/s ({row['low']:.2f} to {row['high']:.2f}, "
            f"n = {row['n']}), "
            f"memory held {row['memory']['ratio']:.2f} times ours"
        )
    first = next(iter(rows.values()))
    result = {
        **{name: first[name] for name in ("ratio", "low", "high", "n")},
        "what": "Loopline's samples per second of a whole GRPO step over TRL's; the first size's at the top",
        "sizes": rows,
        "threads": arguments.threads,
        "trl_settings": TRL_TUNED,
        "versions": common.versions("trl", "transformers", "peft", "datasets"),
    }
    common.finish("grpo_vs_trl", result, arguments)


if __name__ == "__main__":
    main()
