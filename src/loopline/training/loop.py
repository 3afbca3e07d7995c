"""The one training loop: every stage that changes weights runs through `train`.

    train(model, NextToken(), source, steps, config, ctx)

It owns accumulation with the step's global normalizer, clipping, the schedule, precision, guards (skip, rewind, stop:
`log/guards.jsonl`), metrics, a sentence per step where the source has one (`log/why.txt`), atomic checkpoints of the
whole training state, and resume. A source hands out the micro-batches of a step; it may sample them from the model
being trained (reinforcement learning does). On the CPU a resumed run ends in the same bytes as one never interrupted.
Not covered: several processes, sharded weights.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from loopline.base.errors import UserError
from loopline.base.files import to_json, write_json, write_text
from loopline.model.language_model import LanguageModel
from loopline.store.context import Context
from loopline.training.batch import Batch
from loopline.training.config import TrainingConfig
from loopline.training.evaluations import Evaluations
from loopline.training.guards import Decision, Guard, NonFiniteGuard, SpikeGuard, worst
from loopline.training.objectives import Objective
from loopline.training.optimizer import build_optimizers, schedule_factor, set_learning_rate
from loopline.training.side_by_side import add_up, in_order, possible
from loopline.training.state import Progress, TrainingState


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


def accumulate(
    model: LanguageModel,
    objective: Objective,
    batches: Sequence[Batch],
    precision: str = "float32",
    divide: str = "operations",
) -> tuple[float, dict[str, float]]:
    """Add up the gradient of sum(losses) / sum(normalizers) over `batches`; returns the normalizer and mean metrics.

    `precision` and `divide` are `TrainingConfig`'s.
    """
    normalizer = 0.0
    metrics: dict[str, float] = {}
    for count, values in _micro_batches(model, objective, batches, precision, divide):
        normalizer += count
        for name, value in values.items():
            metrics[name] = metrics.get(name, 0.0) + value * count
    scale = 1 / max(normalizer, 1e-9)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    return normalizer, {name: value * scale for name, value in metrics.items()}


def _micro_batches(
    model: LanguageModel, objective: Objective, batches: Sequence[Batch], precision: str, divide: str
) -> Iterator[tuple[float, dict[str, float]]]:
    """Add the gradient of every micro-batch to the parameters', in their order; normalizers and mean metrics."""
    if divide == "batches" and possible(model, batches):
        for gradients, count, values in in_order(model, objective, batches, precision, torch.get_num_threads()):
            add_up(model, gradients)
            yield count, values
        return
    device = next(model.parameters()).device
    lower = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    for batch in batches:
        with lower:
            total, count, values = objective.loss(model, batch.to(device))
        torch.autograd.backward(total)
        yield count, values


def train(
    model: LanguageModel,
    objective: Objective,
    source: BatchSource,
    steps: int,
    config: TrainingConfig,
    ctx: Context,
    description: str = "training",
    guards: Sequence[Guard] = (),
    evaluations: Evaluations | None = None,
) -> dict[str, float]:
    """Train `model` in place for `steps` optimizer steps; returns the last step's metrics.

    `guards` join the loop's own two. With `evaluations` the model ends with the weights that were measured best, and
    `development.json` holds the measurements. Resumes from `ctx.state` when a checkpoint of the training state lies
    there. Raises `UserError` when a guard stops the run.
    """
    optimizers = build_optimizers(model, config.optimizer)
    watch: list[Guard] = [NonFiniteGuard(config.guards), SpikeGuard(config.guards), *guards]
    progress = Progress()
    looks = [] if evaluations is None else [evaluations]
    state = TrainingState(model, optimizers, source, [*watch, *looks], progress)
    saved = ctx.state / "training.pt"
    if saved.exists():
        state.restore(saved)
    log = Log(ctx)
    log.cut(progress)
    with ctx.progress(description, steps) as bar:
        bar.advance(progress.step)
        while progress.step < steps and not any(look.stopped for look in looks):
            step = progress.step
            began = time.monotonic()
            model.eval()
            batches = source.next(progress.data_step)
            model.train()
            sampled = time.monotonic()
            set_learning_rate(optimizers, schedule_factor(step, steps, config.schedule))
            values: dict[str, float] = {}
            if batches:
                _, values = accumulate(model, objective, batches, config.precision, config.divide)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
                values["gradient_norm"] = float(norm)
            progress.last = {**values, **source.metrics()}
            decision = _judge(watch, step, progress.last) if batches else None
            if decision is not None:
                log.decided(progress, decision)
                bar.note(f"{decision.action}: {decision.reason}")
            act = decision.action if decision is not None else "warn"
            if act == "stop":
                raise _stopped(description, step, decision)
            if act == "rewind":
                bar.advance(_rewind(state, saved, config, description, step, decision) - step)
                log.cut(progress)
                continue
            if batches:
                _update(optimizers, act != "skip")
            ended = time.monotonic()
            measured = [row for look in looks if (row := look.after(step + 1, steps, model)) is not None]
            tokens = sum(batch.token_count for batch in batches)
            ctx.metrics.log(
                step,
                **progress.last,
                **{f"development/{name}": value for row in measured for name, value in row.items() if name != "step"},
                learning_rate=optimizers[0].param_groups[0]["lr"],
                tokens=tokens,
                seconds_sampling=sampled - began,
                tokens_per_second=tokens / max(ended - sampled, 1e-9),
            )
            log.reason(step, source.why())
            if decision is None:
                bar.note(looks[0].note() if measured else source.why() or _note(progress.last))
            bar.advance()
            progress.step += 1
            progress.data_step += 1
            # What is saved is what a rewind returns to, so never in the middle of a bad patch.
            good = act != "skip"
            due = progress.step % config.runtime.save_every == 0 and progress.step < steps
            if good and (due or measured):
                state.save(saved)
                for look in looks:
                    look.saved()
    model.eval()
    if evaluations is not None:
        best = evaluations.finish(model)
        write_json(ctx.out / "development.json", {"best": best, "measured": evaluations.history})
        ctx.metrics.summary(**{f"development_{name}": value for name, value in (best or {}).items()})
    return progress.last


def _judge(guards: Sequence[Guard], step: int, metrics: dict[str, float]) -> Decision | None:
    """The worst of the guards' decisions; every guard sees every step."""
    found = [guard.check(step, metrics) for guard in guards]
    return worst([decision for decision in found if decision is not None])


def _update(optimizers: Sequence[Optimizer], wanted: bool) -> None:
    for optimizer in optimizers:
        if wanted:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _rewind(
    state: TrainingState, saved: Path, config: TrainingConfig, description: str, step: int, decision: Decision | None
) -> int:
    """Go back to the last checkpoint, past the data of the steps since; returns the step to go on with."""
    done, drawn = state.progress.rewinds, state.progress.data_step
    if done >= config.guards.rewinds or not saved.exists():
        raise _stopped(description, step, decision)
    state.restore(saved)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    state.progress.rewinds, state.progress.data_step = done + 1, drawn + 1
    state.save(saved)
    return state.progress.step


def _stopped(description: str, step: int, decision: Decision | None) -> UserError:
    assert decision is not None
    return UserError(
        f"{description}: stopped at step {step}: {decision.reason}", decision.fix or "see log/guards.jsonl"
    )


class Log:
    """The loop's files beside the metrics: a sentence per step, and every decision of a guard."""

    def __init__(self, ctx: Context) -> None:
        self.metrics = ctx.metrics
        self.reasons = ctx.out / "log" / "why.txt"
        self.decisions = ctx.out / "log" / "guards.jsonl"

    def cut(self, progress: Progress) -> None:
        """Drop what later steps wrote, and torn last lines: a resumed or rewound run writes them again."""
        self.metrics.truncate(progress.step)
        if self.reasons.exists():
            lines = self.reasons.read_text(encoding="utf-8").splitlines(keepends=True)
            numbers = [re.match(r"step (\d+): .*\n", line) for line in lines]
            kept = [line for line, n in zip(lines, numbers, strict=True) if n and int(n[1]) < progress.step]
            write_text(self.reasons, "".join(kept))
        if self.decisions.exists():
            lines = self.decisions.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            write_text(
                self.decisions, "".join(line for line in whole if json.loads(line)["data_step"] < progress.data_step)
            )

    def reason(self, step: int, sentence: str) -> None:
        """Add a step's sentence, where there is one."""
        if sentence:
            _append(self.reasons, f"step {step}: {sentence}\n")

    def decided(self, progress: Progress, decision: Decision) -> None:
        """Add a guard's decision."""
        row = {"step": progress.step, "data_step": progress.data_step, "rewinds": progress.rewinds}
        _append(self.decisions, to_json({**row, "action": decision.action, "reason": decision.reason}) + "\n")


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _note(values: dict[str, float]) -> str:
    shown = [f"{name} {values[name]:.3f}" for name in ("loss", "reward") if name in values]
    return " ".join(shown)
