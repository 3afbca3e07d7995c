"""The ceiling of a harness result: what the recorded solutions score when they are played back under its limits.

    oracle_score(environment, tasks, tokenizer, config, sampling)

A harness that cuts its policy off (too few turns, too small a context) shows here: the ceiling falls below 1, and a
gain over that harness is a gain over a handicap. Not covered: tasks without a recorded solution, which are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness
from loopline.attempts.scripted import ScriptedEngine, tool_response
from loopline.base.errors import UserError
from loopline.chat.tokenizer import Tokenizer
from loopline.environments.environment import Environment
from loopline.inference.engine import Sampling
from loopline.tasks.task import Task


def oracle_score(
    environment: Environment,
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    config: HarnessConfig,
    sampling: Sampling,
) -> float | None:
    """Mean score of the recorded solutions under `config`'s limits; None without recorded solutions.

    Raises `UserError` when a recorded solution could not be graded.
    """
    recorded = [task for task in tasks if tool_response(task) is not None]
    if not recorded:
        return None
    oracle = ScriptedEngine.oracle(tokenizer, recorded)
    runs = Harness(config.limits()).run(oracle, environment, recorded, sampling)
    total = 0.0
    for task, grade in zip(recorded, environment.grade(recorded, runs), strict=True):
        if grade.score is None:
            raise UserError(
                f"The recorded solution of the task {task.id} could not be graded ({grade.evidence})",
                "fix the task's grader or its recorded solution",
            )
        total += grade.score
    return total / len(recorded)


def require_ceiling(score: float | None, part: str, config: HarnessConfig, max_new_tokens: int) -> None:
    """Raise `UserError` unless the recorded solutions score 1."""
    if score is None:
        raise UserError(
            f"None of the {part} tasks has a recorded solution with tools, so the ceiling of the search is unknown",
            'give tasks a response {"style": "tool", "messages": [...]} that solves them, or set oracle: none',
        )
    if score < 1:
        raise UserError(
            f"Under the first harness the recorded solutions score {score:.1%} on the {part} tasks: it handicaps every "
            f"policy (max_turns {config.max_turns}, max_context_tokens {config.max_context_tokens}, max_new_tokens "
            f"{max_new_tokens})",
            "raise those limits, or set oracle: allow_below_one",
        )
