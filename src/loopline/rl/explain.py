"""What a reinforcement-learning step could learn from, in numbers and in words.

A flat reward has few causes: every group solved, every group failed, answers cut off, answers that could not be graded,
answers with equal rewards. `explain` names the one that dominates, so that a loss of zero is explained. `describe` adds
the step's other numbers: signal, truncation, clipping, entropy, KL, mismatch, age, speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loopline.chat.thinking import THINK
from loopline.grading.reward import repetition
from loopline.rl.group import forced_tokens

if TYPE_CHECKING:
    from loopline.rl.collect import Rollout
    from loopline.rl.group import Group

SHOWN = (
    ("entropy", "entropy"),
    ("policy_kl", "KL to the sampling policy"),
    ("reference_kl", "KL to the reference"),
    ("importance_mean", "importance weight"),
    ("value_loss", "value loss"),
)
"""Metrics of the objective that a step's line carries, and their words."""
FLAT = 0.8
"""Share of groups without signal from which a step counts as one that learns little."""


@dataclass(frozen=True)
class StepFacts:
    """Shares over one step's groups and samples."""

    reward: float = 0.0
    solved: float = 0.0
    failed: float = 0.0
    mixed: float = 0.0
    """Groups between solved and failed; those without any grade count to none of the three."""
    zero_signal: float = 0.0
    truncated: float = 0.0
    ungradable: int = 0
    ungradable_share: float = 0.0
    length: float = 0.0
    thinking: float = 0.0
    repetition: float = 0.0
    """Mean share of repeated word 4-grams in an answer."""
    forced: int = 0
    """Tokens the engine wrote itself, which no loss sees."""
    trained: int = 0
    """Groups that are trained on."""
    rounds: int = 1
    """Rounds of prompts asked."""
    mismatch: float = 0.0
    """KL per token between sampler and trainer at equal weights."""
    mismatch_max: float = 0.0
    """Largest difference of their log-probs."""
    version: int = 0
    """Version of the weights that sampled: the updates before them."""
    age: float = 0.0
    """Updates between the weights that sampled and those being updated."""
    update: int = 0
    """Which update on this rollout the step is, from 0."""
    tokens_per_second: float = 0.0
    """Speed of sampling and grading."""

    @classmethod
    def of_rollout(cls, rollout: Rollout) -> StepFacts:
        """The facts of a rollout."""
        return replace(
            cls.of(rollout.groups),
            trained=len(rollout.kept),
            rounds=rollout.rounds,
            mismatch=rollout.mismatch.kl,
            mismatch_max=rollout.mismatch.largest,
            version=rollout.version,
            tokens_per_second=rollout.tokens / max(rollout.seconds, 1e-9),
        )

    @classmethod
    def of(cls, groups: Sequence[Group]) -> StepFacts:
        """The facts of a step's groups."""
        completions = [completion for group in groups for completion in group.completions]
        rewards = [reward for group in groups for reward in group.rewards if reward is not None]
        scores = [[g.score for g in group.grades if g.score is not None] for group in groups]
        count, total = max(len(groups), 1), max(len(completions), 1)
        graded = sum(bool(s) for s in scores)
        solved = sum(bool(s) and min(s) >= 1 for s in scores)
        failed = sum(bool(s) and max(s) <= 0 for s in scores)
        ungradable = sum(reward is None for group in groups for reward in group.rewards)
        return cls(
            reward=sum(rewards) / max(len(rewards), 1),
            solved=solved / count,
            failed=failed / count,
            mixed=(graded - solved - failed) / count,
            zero_signal=sum(not group.has_signal for group in groups) / count,
            truncated=sum(c.finish == "length" for c in completions) / total,
            ungradable=ungradable,
            ungradable_share=ungradable / total,
            length=sum(len(c.token_ids) for c in completions) / total,
            thinking=sum(THINK in text for group in groups for text in group.texts) / total,
            repetition=math.fsum(repetition(text) for group in groups for text in group.texts) / total,
            forced=sum(sum(forced_tokens(completion)) for completion in completions),
            trained=sum(group.has_signal for group in groups),
        )

    def metrics(self) -> dict[str, float]:
        """Namespaced numbers for the log."""
        return {
            "reward": self.reward,
            "rollout/solved_share": self.solved,
            "rollout/failed_share": self.failed,
            "rollout/zero_signal_share": self.zero_signal,
            "rollout/truncated_share": self.truncated,
            "rollout/ungradable": float(self.ungradable),
            "rollout/length": self.length,
            "rollout/thinking_share": self.thinking,
            "rollout/mixed_share": self.mixed,
            "rollout/repetition": self.repetition,
            "rollout/forced_tokens": float(self.forced),
            "rollout/trained_groups": float(self.trained),
            "rollout/rounds": float(self.rounds),
            "rollout/mismatch_kl": self.mismatch,
            "rollout/mismatch_max": self.mismatch_max,
            "rollout/version": float(self.version),
            "rollout/age": self.age,
            "rollout/tokens_per_second": self.tokens_per_second,
        }


def explain_values(facts: StepFacts, explained: float) -> str:
    """One sentence for a step whose baseline is a value network, which learns from groups without a difference, too.

    `explained` is the share of the returns' variance that the network foresaw.
    """
    if facts.ungradable_share == 1:
        return f"{_numbers(facts)}; nothing to learn: no answer could be graded, fix the grader."
    return f"{_numbers(facts)}; learning from every graded answer, of whose returns the values explain {explained:.0%}."


def _numbers(facts: StepFacts) -> str:
    """What every sentence begins with."""
    numbers = (
        f"reward {facts.reward:.2f}; groups {facts.solved:.0%} solved, {facts.mixed:.0%} mixed, "
        f"{facts.failed:.0%} failed"
    )
    if facts.ungradable:
        answers = "answer" if facts.ungradable == 1 else "answers"
        numbers += f"; {facts.ungradable} {answers} could not be graded"
    return numbers


def explain(facts: StepFacts) -> str:
    """One sentence: what this step could learn from, or why it could not."""
    numbers = _numbers(facts)
    if facts.zero_signal < FLAT:
        return f"{numbers}; learning from the mixed groups."
    amount = "nothing" if facts.zero_signal == 1 else "little"
    return f"{numbers}; {amount} to learn: {_cause(facts)}."


def describe(facts: StepFacts, metrics: Mapping[str, float], training_speed: float = 0.0) -> str:
    """The step's other numbers in one line; `metrics` are the objective's, which a step without an update has not."""
    parts = [
        f"zero signal {facts.zero_signal:.0%}",
        f"truncated {facts.truncated:.0%}",
        f"ungradable {facts.ungradable}",
    ]
    if facts.rounds > 1:
        parts.append(f"{facts.rounds} rounds for {facts.trained} groups")
    if facts.forced:
        parts.append(f"{facts.forced} forced tokens left out")
    if "clip_low" in metrics and "clip_high" in metrics:
        parts.append(f"clipped {metrics['clip_low']:.1%} low {metrics['clip_high']:.1%} high")
    parts += [f"{words} {metrics[name]:.3g}" for name, words in SHOWN if name in metrics]
    parts.append(f"mismatch {facts.mismatch:.1g} (at most {facts.mismatch_max:.1g})")
    parts.append(f"policy {facts.version} of age {facts.age:g}")
    if facts.update:
        parts.append(f"update {facts.update + 1} on this rollout")
    speeds = [f"{facts.tokens_per_second:,.0f} tokens/s sampled"] if facts.tokens_per_second else []
    speeds += [f"{training_speed:,.0f} trained"] if training_speed else []
    text = "; ".join([*parts, ", ".join(speeds)] if speeds else parts)
    return f"{text[0].upper()}{text[1:]}."


def _cause(facts: StepFacts) -> str:
    """Why most groups have no signal, and what to do about it."""
    if facts.ungradable_share > 0.5:
        return "most answers could not be graded, fix the grader"
    if facts.truncated > 0.5:
        return f"{_most(facts.truncated, 'answer is', 'answers are')} cut off, raise max_new_tokens"
    if facts.failed >= FLAT:
        return f"{_most(facts.failed, 'group fails', 'groups fail')}, train longer before or use easier tasks"
    if facts.solved >= FLAT:
        return f"{_most(facts.solved, 'group is solved', 'groups are solved')} already, use harder tasks or stop"
    if facts.mixed > max(facts.failed, facts.solved):
        return "the answers to a prompt all earn the same, use a grader that scores them differently"
    return "groups are solved or failed altogether, use tasks in between or larger groups"


def _most(share: float, one: str, many: str) -> str:
    return f"every {one}" if share == 1 else f"most {many}"
