"""The one training loop: every stage that changes weights runs through `train`.

    train(model, NextToken(), source, steps, config, ctx)

It owns accumulation with the step's global normalizer, clipping, the schedule, the guard against non-finite numbers,
metrics, a sentence per step where the source has one (`log/why.txt`), atomic checkpoints of the whole training state,
and resume. A source hands out the micro-batches of a step; it may sample them from the model being trained
(reinforcement learning does). On the CPU a resumed run ends in the same bytes as one never interrupted. Not covered:
several processes, mixed precision.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from throughline.base.errors import UserError
from throughline.base.files import write_bytes, write_text
from throughline.model.decoder import Decoder
from throughline.store.context import Context
from throughline.training.batch import Batch
from throughline.training.config import TrainConfig
from throughline.training.objectives import Objective
from throughline.training.optimizer import build_optimizers, schedule_factor, set_learning_rate

NON_FINITE_LIMIT = 3
"""Steps in a row with a non-finite gradient after which training stops: by then it is not a stray number."""


class BatchSource(Protocol):
    """Where the loop's micro-batches come from."""

    def next(self, step: int) -> Sequence[Batch]:
        """Micro-batches of optimizer step `step`; an empty list skips the step."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers to log beside the step's loss."""
        ...

    def why(self) -> str:
        """One sentence on what the last step could learn from; empty where there is nothing to say."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Whatever `next` needs beyond the step number."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


def accumulate(model: Decoder, objective: Objective, batches: Sequence[Batch]) -> tuple[float, dict[str, float]]:
    """Add up the gradient of sum(losses) / sum(normalizers) over `batches`; returns the normalizer and mean metrics."""
    normalizer = 0.0
    metrics: dict[str, float] = {}
    for batch in batches:
        total, count, values = objective.loss(model, batch)
        torch.autograd.backward(total)
        normalizer += count
        for name, value in values.items():
            metrics[name] = metrics.get(name, 0.0) + value * count
    scale = 1 / max(normalizer, 1e-9)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    return normalizer, {name: value * scale for name, value in metrics.items()}


def train(
    model: Decoder,
    objective: Objective,
    source: BatchSource,
    steps: int,
    config: TrainConfig,
    ctx: Context,
    description: str = "training",
) -> dict[str, float]:
    """Train `model` in place for `steps` optimizer steps; returns the last step's metrics.

    Resumes from `ctx.state` when a checkpoint of the training state lies there. Raises `UserError` when gradients stay
    non-finite.
    """
    optimizers = build_optimizers(model, config.optimizer)
    saved = ctx.state / "training.pt"
    start, bad_steps = 0, 0
    last: dict[str, float] = {}
    if saved.exists():
        start, bad_steps, last = _restore(saved, model, optimizers, source)
    reasons = ctx.out / "log" / "why.txt"
    ctx.metrics.truncate(start)
    _drop_reasons(reasons, start)
    with ctx.progress(description, steps) as bar:
        bar.advance(start)
        for step in range(start, steps):
            began = time.monotonic()
            model.eval()
            batches = source.next(step)
            model.train()
            sampled = time.monotonic()
            set_learning_rate(optimizers, schedule_factor(step, steps, config.schedule))
            values: dict[str, float] = {}
            if batches:
                _, values = accumulate(model, objective, batches)
                norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip))
                values["gradient_norm"] = norm
                if math.isfinite(norm):
                    bad_steps = 0
                    for optimizer in optimizers:
                        optimizer.step()
                else:
                    bad_steps += 1
                    if bad_steps >= NON_FINITE_LIMIT:
                        raise UserError(
                            f"{description}: the gradient was not finite {bad_steps} steps in a row, up to step {step}",
                            "lower the stage's learning_rate",
                        )
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
            ended = time.monotonic()
            tokens = sum(batch.token_count for batch in batches)
            last = {**values, **source.metrics()}
            ctx.metrics.log(
                step,
                **last,
                learning_rate=optimizers[0].param_groups[0]["lr"],
                tokens=tokens,
                seconds_sampling=sampled - began,
                tokens_per_second=tokens / max(ended - sampled, 1e-9),
            )
            _add_reason(reasons, step, source.why())
            bar.note(source.why() or _note(last))
            bar.advance()
            if (step + 1) % config.runtime.save_every == 0 and step + 1 < steps:
                _save(saved, model, optimizers, source, step + 1, bad_steps, last)
    model.eval()
    return last


def _drop_reasons(path: Path, step: int) -> None:
    """Drop the sentences of steps at or after `step`, and a torn last line: a resumed run writes them again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        numbers = [re.match(r"step (\d+): .*\n", line) for line in lines]
        write_text(path, "".join(line for line, n in zip(lines, numbers, strict=True) if n and int(n[1]) < step))


def _add_reason(path: Path, step: int, sentence: str) -> None:
    if sentence:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"step {step}: {sentence}\n")


def _note(values: dict[str, float]) -> str:
    shown = [f"{name} {values[name]:.3f}" for name in ("loss", "reward") if name in values]
    return " ".join(shown)


def _save(
    path: Path,
    model: Decoder,
    optimizers: list[torch.optim.Optimizer],
    source: BatchSource,
    step: int,
    bad_steps: int,
    last: dict[str, float],
) -> None:
    buffer = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "source": source.state_dict(),
            "step": step,
            "bad_steps": bad_steps,
            "last": last,
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def _restore(
    path: Path, model: Decoder, optimizers: list[torch.optim.Optimizer], source: BatchSource
) -> tuple[int, int, dict[str, float]]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    source.load_state_dict(state["source"])
    return state["step"], state["bad_steps"], state["last"]
