"""A line of small stages for tests of what runs the line, and a command line over it.

    python -m tests.support_line numbers run recipe.yaml --dir DIR       # the real command line over a fake line
    python -m tests.support_line training run recipe.yaml --dir DIR      # five stages, two with the training loop
    python -m tests.support_line training forks                          # a command line per line of standard input

Stages write files, sometimes slowly; `walk` and the training stages go on from their state. Imports no torch until a
training stage runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loopline.base.config import Config, Runtime
from loopline.base.files import read_json, write_bytes, write_json
from loopline.base.stage import StageKind, Takes
from loopline.recipe import Recipe, parse_recipe
from loopline.store.artifact import Artifact
from loopline.store.context import Context

CALLS: list[str] = []
"""Names of the stages that ran in this process, in order."""


class NumbersConfig(Config):
    """Random numbers."""

    count: int = Field(default=20, ge=1)
    """How many."""


class TrimConfig(Config):
    """The first few."""

    limit: int = Field(default=100, ge=1)
    """At most so many; beyond the count it changes nothing."""


class Pace(Runtime):
    """How slowly a stage works."""

    seconds: float = Field(default=0.0, ge=0)
    """Seconds a step takes."""
    save_every: int = Field(default=3, ge=1)
    """Steps between two saved states."""


class WalkConfig(Config):
    """A walk, one step per number, whose state is saved on the way."""

    stride: int = Field(default=1, ge=1)
    """Length of a step."""
    steps: int = Field(default=20, ge=1)
    """Steps."""
    pace: Pace = Pace()
    """Speed."""


class TotalConfig(Config):
    """A sum."""

    scale: float = Field(default=1.0, gt=0)
    """Factor."""


class FitConfig(Config):
    """A tiny model, trained by the real loop."""

    steps: int = Field(default=60, ge=1)
    """Optimizer steps."""
    pace: Pace = Pace()
    """Speed and checkpoints."""


def numbers(config: NumbersConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    CALLS.append(ctx.stage)
    values = ctx.rng("numbers").integers(1, 100, config.count).tolist()
    write_json(ctx.out / "numbers.json", values)


def trim(config: TrimConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    CALLS.append(ctx.stage)
    write_json(ctx.out / "numbers.json", read_json(inputs["numbers"] / "numbers.json")[: config.limit])


def walk(config: WalkConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    CALLS.append(ctx.stage)
    values = read_json(inputs["numbers"] / "numbers.json")
    saved = ctx.state / "walk.json"
    at = read_json(saved) if saved.exists() else {"step": 0, "sum": 0}
    write_json(ctx.out / "log" / "began.json", at["step"])
    ctx.metrics.truncate(at["step"])
    with ctx.progress("walking", config.steps) as bar:
        for step in range(at["step"], config.steps):
            time.sleep(config.pace.seconds)
            at = {"step": step + 1, "sum": at["sum"] * 3 % 100_003 + config.stride * values[step % len(values)]}
            ctx.metrics.log(step, sum=at["sum"])
            if (step + 1) % config.pace.save_every == 0:
                write_json(saved, at)
            bar.advance()
    write_json(ctx.out / "walk.json", at["sum"])
    ctx.metrics.summary(sum=at["sum"])


def total(config: TotalConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    CALLS.append(ctx.stage)
    value = read_json(inputs["walk"] / "walk.json") + sum(read_json(inputs["numbers"] / "numbers.json"))
    write_json(ctx.out / "total.json", config.scale * value)


def fit(config: FitConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train on the numbers, from the "base" input's weights where there is one."""
    from safetensors.torch import load_file, save

    from loopline.training.batch import Batch, Example
    from loopline.training.config import OptimizerConfig, TrainingConfig, TrainRuntime
    from loopline.training.loop import train
    from loopline.training.objectives import NextToken
    from loopline.training.sources import ExampleSource
    from tests.support_model import tiny_model

    class Slow(ExampleSource):
        def next(self, step: int) -> Sequence[Batch]:
            time.sleep(config.pace.seconds)
            return super().next(step)

    model = tiny_model(ctx.seed_for("model") % 2**31)
    if "base" in inputs:
        model.load_state_dict(load_file(inputs["base"] / "weights.safetensors"))
    values = read_json(inputs["numbers"] / "numbers.json")
    examples = [Example([10 + v, 20 + v, 30 + i], [1.0, 1.0, 1.0]) for i, v in enumerate(values)]
    source = Slow(examples, 4, 16, 2, ctx.seed_for("order") % 2**31)
    settings = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=3e-3), runtime=TrainRuntime(save_every=config.pace.save_every)
    )
    train(model, NextToken(), source, config.steps, settings, ctx)
    write_bytes(ctx.out / "weights.safetensors", save({k: v.contiguous() for k, v in model.state_dict().items()}))


HERE = "tests.support_line"
NUMBERS = Takes("numbers")


def kinds_of(*kinds: StageKind) -> dict[str, StageKind]:
    """A catalogue."""
    return {kind.name: kind for kind in kinds}


NUMBERS_KINDS = kinds_of(
    StageKind("numbers", NumbersConfig, f"{HERE}:numbers", "numbers", area=1),
    StageKind("trim", TrimConfig, f"{HERE}:trim", "numbers", {"numbers": NUMBERS}, area=2),
    StageKind("walk", WalkConfig, f"{HERE}:walk", "walk", {"numbers": NUMBERS}, area=4),
    StageKind("total", TotalConfig, f"{HERE}:total", "total", {"walk": Takes("walk"), "numbers": NUMBERS}, area=9),
)
NUMBERS_NODES = ("numbers", "trim", "walk", "total")
"""Names of the nodes of `numbers_raw`."""
TRAINING_KINDS = kinds_of(
    NUMBERS_KINDS["numbers"],
    StageKind("pretrain", FitConfig, f"{HERE}:fit", "checkpoint", {"numbers": NUMBERS}, area=4),
    StageKind("sft", FitConfig, f"{HERE}:fit", "checkpoint", {"base": Takes("checkpoint"), "numbers": NUMBERS}),
    NUMBERS_KINDS["walk"],
    NUMBERS_KINDS["total"],
)
KINDS = {"numbers": NUMBERS_KINDS, "training": TRAINING_KINDS}


def numbers_raw(**settings: Mapping[str, Any]) -> dict[str, Any]:
    """The line of small stages as a recipe's values, with settings per node."""
    total = {"total": settings.get("total", {}), "inputs": {"numbers": "numbers"}}
    return {"line": [*({name: settings.get(name, {})} for name in NUMBERS_NODES[:3]), total]}


def numbers_recipe(seed: int = 0, threads: int = 1, **settings: Mapping[str, Any]) -> Recipe:
    """The same, resolved."""
    raw = {"name": "fake", "seed": seed, "compute": {"threads": threads}, **numbers_raw(**settings)}
    return parse_recipe(raw, "fake.yaml", kinds=NUMBERS_KINDS)


def install(name: str) -> None:
    """Put a fake catalogue in the real one's place, for the rest of the process."""
    import loopline.recipe
    import loopline.stages

    loopline.recipe.catalogue = lambda: KINDS[name]
    loopline.stages.catalogue = lambda: KINDS[name]


def serve_forks() -> None:
    """For every line (arguments as JSON): a process of its own that has nothing left to import.

    Prints its id, and once it is dead its status. Nothing is computed before the fork, so no thread is lost in it.
    """
    from loopline.training import loop
    from loopline.training.config import OptimizerConfig
    from tests.support_model import tiny_model

    loop.build_optimizers(tiny_model(), OptimizerConfig())
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.argv = ["loopline", *json.loads(line)]
            status = 1
            try:
                main()
                status = 0
            except SystemExit as ending:
                status = int(ending.code or 0)
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    from loopline.cli import main
    from loopline.compute.local import prepare

    install(sys.argv.pop(1))
    prepare("cpu", 1)  # Loads torch first, so that what is timed from the outside is the stages.
    if sys.argv[1:] == ["forks"]:
        serve_forks()
    else:
        main()
