"""Guards over rollouts: entropy collapse, repetition, length drift, KL blow-up, a sampler that is not the trainer.

    train(model, objective, source, steps, config, ctx, guards=rollout_guards(RolloutGuardConfig()))

Each rule is a pure function of the step's numbers and the run's own beginning, `judge`, with its thresholds in the
config; it must hold for `patience` steps in a row before anything is decided. Signals of reward hacking alone raise
false alarms on runs that are merely flat or learning well, so repetition and length count only while the reward does
not rise. The loop logs and carries out the decisions (see `training.guards`). Not covered: numbers that are not finite
and loss spikes, which the loop watches itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from loopline.base.config import Config
from loopline.training.guards import Action, Decision


class RolloutGuardConfig(Config):
    """When a rollout's numbers call for something, and for what."""

    patience: int = Field(default=3, ge=1)
    """Steps in a row that a rule must hold before it decides."""
    baseline: int = Field(default=5, ge=1)
    """First steps of the run whose means later ones are compared with."""
    entropy_floor: float = Field(default=0.02, ge=0)
    """Entropy per token, in nats, below which a policy has collapsed."""
    entropy_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the run's first entropy below which it has collapsed."""
    entropy_action: Action = "warn"
    """What a collapse leads to."""
    repetition_limit: float = Field(default=0.3, ge=0, le=1)
    """Share of repeated word 4-grams in the answers, while the reward does not rise."""
    repetition_action: Action = "warn"
    """What repetition leads to."""
    length_factor: float = Field(default=2.0, gt=1)
    """Answers this many times longer, or shorter, than at first, while the reward does not rise."""
    length_action: Action = "warn"
    """What length drift leads to."""
    reward_rise: float = Field(default=0.02, ge=0)
    """Reward above the run's first that counts as rising."""
    reference_kl_limit: float = Field(default=10.0, gt=0)
    """KL to the reference policy per token (k3), in nats."""
    policy_kl_limit: float = Field(default=0.5, gt=0)
    """KL to the policy that sampled, per token (k3), in nats: the update would rest on answers of another policy."""
    kl_action: Action = "skip"
    """What a KL blow-up leads to."""
    mismatch_limit: float = Field(default=0.05, gt=0)
    """KL per token (k3) between sampler and trainer at equal weights. Rounding gives 1e-9 in float32, 1e-3 in bfloat16;
    more means that the two compute different things."""
    mismatch_action: Action = "stop"
    """What a mismatch leads to."""


class Rule:
    """Base of the rules: how often in a row `judge` found something, and the means of the run's first steps."""

    watched: tuple[str, ...] = ()
    """Metrics whose first steps are averaged."""

    def __init__(self, config: RolloutGuardConfig) -> None:
        self.config, self.row = config, 0
        self.first: dict[str, list[float]] = {name: [] for name in self.watched}

    @property
    def action(self) -> Action:
        """What the rule leads to."""
        raise NotImplementedError

    @property
    def fix(self) -> str:
        """What a user may change."""
        raise NotImplementedError

    def judge(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> str | None:
        """What is wrong with a step's numbers, in one clause; `first` holds the means of the run's first steps."""
        raise NotImplementedError

    def check(self, step: int, metrics: Mapping[str, float]) -> Decision | None:
        """The decision about `step`; None while the rule has not held for `patience` steps in a row."""
        del step
        done = {name: math.fsum(v) / len(v) for name, v in self.first.items() if len(v) == self.config.baseline}
        for name, values in self.first.items():
            if len(values) < self.config.baseline and math.isfinite(metrics.get(name, math.nan)):
                values.append(metrics[name])
        found = self.judge(metrics, done)
        self.row = self.row + 1 if found else 0
        if found is None or self.row < self.config.patience:
            return None
        return Decision(self.action, found, self.fix)

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "first": {name: list(values) for name, values in self.first.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.row = state["row"]
        self.first = {name: list(values) for name, values in state["first"].items()}

    def rises(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> bool:
        """Whether the reward is above the run's first."""
        return "reward" in first and metrics.get("reward", math.nan) > first["reward"] + self.config.reward_rise


class EntropyGuard(Rule):
    """The policy has become nearly deterministic, so groups cannot differ any more."""

    watched = ("entropy",)
    fix = "raise clip_high or the temperature, lower the learning rate, or add a KL penalty"

    @property
    def action(self) -> Action:
        return self.config.entropy_action

    def judge(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> str | None:
        value = metrics.get("entropy", math.nan)
        if value < self.config.entropy_floor:
            return f"entropy {value:.3g} nats, below {self.config.entropy_floor:.3g}: the policy has collapsed"
        if "entropy" in first and value < self.config.entropy_share * first["entropy"]:
            return f"entropy {value:.3g} nats against {first['entropy']:.3g} at first: the policy is collapsing"
        return None


class RepetitionGuard(Rule):
    """Answers repeat themselves, and the reward does not rise."""

    watched = ("reward",)
    fix = "set reward.repetition_penalty, or fix a grader that rewards repetition"

    @property
    def action(self) -> Action:
        return self.config.repetition_action

    def judge(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> str | None:
        value = metrics.get("rollout/repetition", math.nan)
        if not value > self.config.repetition_limit or self.rises(metrics, first):
            return None
        return f"{value:.0%} of the answers' word 4-grams are repetitions, and the reward does not rise"


class LengthGuard(Rule):
    """Answers grow or shrink a lot, and the reward does not rise."""

    watched = ("rollout/length", "reward")
    fix = "set reward.overlong_from and reward.overlong_to, or reward.length.cost"

    @property
    def action(self) -> Action:
        return self.config.length_action

    def judge(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> str | None:
        value, before = metrics.get("rollout/length", math.nan), first.get("rollout/length")
        if before is None or self.rises(metrics, first):
            return None
        if not (value > before * self.config.length_factor or value < before / self.config.length_factor):
            return None
        return f"answers of {value:.1f} tokens against {before:.1f} at first, and the reward does not rise"


class KLGuard(Rule):
    """The policy is far from where its answers, or the run, came from."""

    fix = "lower the learning rate or updates_per_rollout, or raise kl_coefficient"

    @property
    def action(self) -> Action:
        return self.config.kl_action

    def judge(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> str | None:
        value = metrics.get("policy_kl", math.nan)
        if value > self.config.policy_kl_limit:
            return f"KL to the policy that sampled {value:.3g} nats per token, above {self.config.policy_kl_limit:.3g}"
        value = metrics.get("reference_kl", math.nan)
        if value > self.config.reference_kl_limit:
            return f"KL to the reference {value:.3g} nats per token, above {self.config.reference_kl_limit:.3g}"
        return None


class MismatchGuard(Rule):
    """Collector and trainer disagree at equal weights: one of them computes something else."""

    fix = "compare their precision, temperature and top-p; a stale or partial weight sync gives the same picture"

    @property
    def action(self) -> Action:
        return self.config.mismatch_action

    def judge(self, metrics: Mapping[str, float], first: Mapping[str, float]) -> str | None:
        value = metrics.get("rollout/mismatch_kl", math.nan)
        if not value > self.config.mismatch_limit:
            return None
        worst = metrics.get("rollout/mismatch_max", math.nan)
        return f"sampler and trainer differ by {value:.3g} nats per token at equal weights, at most by {worst:.3g}"


RULES = (EntropyGuard, RepetitionGuard, LengthGuard, KLGuard, MismatchGuard)


def rollout_guards(config: RolloutGuardConfig) -> list[Rule]:
    """One guard of each rule."""
    return [rule(config) for rule in RULES]


class Listener:
    """A guard that decides nothing: it keeps a step's numbers for whoever writes the step's sentence."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def check(self, step: int, metrics: Mapping[str, float]) -> Decision | None:
        del step
        self.metrics = dict(metrics)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
