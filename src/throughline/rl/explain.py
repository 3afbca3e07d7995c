"""What a reinforcement-learning step could learn from, in numbers and in words.

A flat reward has few causes: every group solved, every group failed, answers cut off, answers that could not be
graded, answers that all earn the same. `explain` names the one that dominates, so that nobody has to guess from a loss
of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughline.rl.rollout import Group

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
            thinking=sum("<think>" in text for group in groups for text in group.texts) / total,
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
        }


def explain(facts: StepFacts) -> str:
    """One sentence: what this step could learn from, or why it could not."""
    numbers = (
        f"reward {facts.reward:.2f}; groups {facts.solved:.0%} solved, {facts.mixed:.0%} mixed, "
        f"{facts.failed:.0%} failed"
    )
    if facts.ungradable:
        answers = "answer" if facts.ungradable == 1 else "answers"
        numbers += f"; {facts.ungradable} {answers} could not be graded"
    if facts.zero_signal < FLAT:
        return f"{numbers}; learning from the mixed groups."
    amount = "nothing" if facts.zero_signal == 1 else "little"
    return f"{numbers}; {amount} to learn: {_cause(facts)}."


def _cause(facts: StepFacts) -> str:
    """Why most groups have no signal, and what to do about it."""
    if facts.ungradable_share > 0.5:
        return "most answers could not be graded, mend the grader"
    if facts.truncated > 0.5:
        return f"{_most(facts.truncated, 'answer is', 'answers are')} cut off, raise max_new_tokens"
    if facts.failed >= FLAT:
        return f"{_most(facts.failed, 'group fails', 'groups fail')}, train longer before or use easier tasks"
    if facts.solved >= FLAT:
        return f"{_most(facts.solved, 'group is solved', 'groups are solved')} already, use harder tasks or stop"
    if facts.mixed > max(facts.failed, facts.solved):
        return "the answers to a prompt all earn the same, use a grader that tells them apart"
    return "groups are solved or failed altogether, use tasks in between or larger groups"


def _most(share: float, one: str, many: str) -> str:
    return f"every {one}" if share == 1 else f"most {many}"
