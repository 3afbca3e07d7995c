"""A stage's curve copied into a tracker while it is written: TensorBoard, Weights & Biases, MLflow or trackio.

    with tracked(["tensorboard"], run_dir, "laptop", "grpo") as sinks:
        for sink in sinks: sink(step, {"loss": 1.2})

`metrics.jsonl` stays the record; a tracker is a view. Each needs its own package (`pip install loopline[track]` brings
TensorBoard), is imported only when it is named, and takes its address and key from its own environment variables. Not
covered: artifacts and settings, which stay in the run directory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError

Sink = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its numbers."""
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Tracker to the module it needs."""


@contextmanager
def tracked(names: Sequence[str], run_dir: Path, run: str, node: str) -> Iterator[list[Sink]]:
    """One sink per named tracker, closed at the end. Raises `UserError` when a tracker's package is missing."""
    with ExitStack() as stack:
        yield [stack.enter_context(OPEN[name](_module(name), run_dir, run, node)) for name in names]


def require(names: Sequence[str]) -> None:
    """Raise `UserError` before compute when a named tracker cannot be imported."""
    for name in names:
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        package = PACKAGES[name].rpartition(".")[2]
        what = f"track names {name}, and its package is not installed ({error})"
        raise UserError(what, f"pip install {package}") from error


@contextmanager
def _tensorboard(module: Any, run_dir: Path, run: str, node: str) -> Iterator[Sink]:
    del run
    writer = module.SummaryWriter(log_dir=str(run_dir / "tensorboard" / node))

    def sink(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield sink
    finally:
        writer.close()


@contextmanager
def _wandb(module: Any, run_dir: Path, run: str, node: str) -> Iterator[Sink]:
    session = module.init(project="loopline", group=run, name=f"{run}/{node}", dir=str(run_dir), reinit=True)
    try:
        yield lambda step, values: session.log(dict(values), step=step)
    finally:
        session.finish()


@contextmanager
def _mlflow(module: Any, run_dir: Path, run: str, node: str) -> Iterator[Sink]:
    del run_dir
    module.set_experiment(f"loopline/{run}")
    with module.start_run(run_name=node):
        yield lambda step, values: module.log_metrics(dict(values), step=step)


@contextmanager
def _trackio(module: Any, run_dir: Path, run: str, node: str) -> Iterator[Sink]:
    del run_dir
    module.init(project=f"loopline-{run}", name=node)
    try:
        yield lambda step, values: module.log({"step": step, **values})
    finally:
        module.finish()


OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
