"""Guards: rules that watch a run's numbers before each update and decide whether it may happen.

    guard = SpikeGuard(GuardConfig())
    decision = guard.check(step, {"loss": 9.0, "gradient_norm": 40.0})

A decision is to warn, to skip the update, to rewind (back to the last checkpoint, on to data not seen yet) or to stop.
The loop carries decisions out and writes each to `log/guards.jsonl`. Guards keep their history in `state_dict`, so a
resumed run decides as an uninterrupted one. Not covered: rules about rollouts (see `rl.guards`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from loopline.training.config import GuardConfig

Action = Literal["warn", "skip", "rewind", "stop"]
SEVERITY: tuple[Action, ...] = ("warn", "skip", "rewind", "stop")
WATCHED = ("loss", "gradient_norm")
"""What a spike is looked for in."""


@dataclass(frozen=True)
class Decision:
    """What to do about a step, and why."""

    action: Action
    """`warn` updates all the same; `skip` drops the update; `rewind` goes back to the last checkpoint; `stop` ends."""
    reason: str
    """One clause with the numbers that decided."""
    fix: str = ""
    """What a user may change; shown when the run stops."""


class Guard(Protocol):
    """A rule over a run's numbers."""

    def check(self, step: int, metrics: Mapping[str, float]) -> Decision | None:
        """Judge the numbers of `step`, whose gradient is known and whose update has not happened."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """History that `check` needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


class NonFiniteGuard:
    """A loss or gradient that is not finite is skipped; several in a row are no stray number, and rewind the run."""

    def __init__(self, config: GuardConfig) -> None:
        self.config, self.row = config, 0

    def check(self, step: int, metrics: Mapping[str, float]) -> Decision | None:
        bad = [name for name in WATCHED if name in metrics and not math.isfinite(metrics[name])]
        if not bad:
            self.row = 0
            return None
        self.row += 1
        names = " and ".join(name.replace("_", " ") for name in bad)
        steps = "step" if self.row == 1 else "steps in a row"
        action: Action = "rewind" if self.row >= self.config.patience else "skip"
        return Decision(action, f"{names} not finite, {self.row} {steps}", "lower the stage's learning_rate")

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.row = state["row"]


class SpikeGuard:
    """A loss or gradient norm far above its recent history is skipped, and the run rewound when that does not help.

    Far is more than `spike_sigmas` standard deviations over the mean of the last `spike_window` accepted steps, and
    twice that mean: the first alone would call the wobble of a flat curve a spike. Spikes do not enter the history.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config, self.row = config, 0
        self.history: dict[str, list[float]] = {name: [] for name in WATCHED}

    def check(self, step: int, metrics: Mapping[str, float]) -> Decision | None:
        values = {name: metrics[name] for name in WATCHED if math.isfinite(metrics.get(name, math.nan))}
        for name, value in values.items():
            known = self.history[name]
            if len(known) < self.config.spike_minimum:
                continue
            mean = math.fsum(known) / len(known)
            deviation = math.sqrt(math.fsum((item - mean) ** 2 for item in known) / len(known))
            if value > mean + self.config.spike_sigmas * deviation and value > 2 * abs(mean):
                self.row += 1
                action: Action = "rewind" if self.row >= self.config.patience else "skip"
                reason = f"{name.replace('_', ' ')} {value:.4g} against {mean:.4g} over the last {len(known)} steps"
                return Decision(action, reason, "lower the stage's learning_rate, or clean the data of these steps")
        self.row = 0
        for name, value in values.items():
            self.history[name] = [*self.history[name], value][-self.config.spike_window :]
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "history": {name: list(values) for name, values in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.row = state["row"]
        self.history = {name: list(values) for name, values in state["history"].items()}


def worst(decisions: list[Decision]) -> Decision | None:
    """The most severe decision, the first of equals; None when there is none."""
    return max(decisions, key=lambda decision: SEVERITY.index(decision.action), default=None)
