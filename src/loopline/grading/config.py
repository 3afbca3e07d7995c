"""Settings of grader definitions, their audit, and evaluations; the default definitions.

A definition is JSON of the OpenAI grader format (string_check, text_similarity, python, multi) or of one of the own
types final_answer, steps, format_check, refusal and code_tests. Beside the format's fields a definition may name the
`families` it is for. Not covered: rewards (see `reward.py`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from loopline.base.config import Config

REASONING = ("arithmetic", "word_problem", "ordering")
FAMILIES = (*REASONING, "code", "format", "safety", "lookup")
DEFAULT_DEFINITIONS: dict[str, dict[str, Any]] = {
    "final_answer": {"type": "final_answer"},
    "steps": {"type": "steps", "families": list(REASONING)},
    "code_tests": {"type": "code_tests"},
    "format_check": {"type": "format_check"},
    "refusal": {"type": "refusal"},
    # Kept as a warning: it pays for any text that holds the answer somewhere, and the audit says so.
    "naive_contains": {
        "type": "string_check",
        "operation": "like",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "families": list(REASONING),
    },
}


class GradersConfig(Config):
    """Which graders there are, and which of them the line may trust."""

    definitions: dict[str, dict[str, Any]] = DEFAULT_DEFINITIONS
    """Name -> definition."""
    required: tuple[str, ...] = ("final_answer", "steps", "code_tests", "format_check", "refusal")
    """Graders that must pass the audit; the stage refuses to finish otherwise."""
    audit_tasks: int = Field(default=24, ge=4)
    """Tasks each probe is tried on, at most."""


class EvaluateConfig(Config):
    """What a checkpoint is asked, and how."""

    families: tuple[str, ...] = FAMILIES
    """Task families; lookup is asked with its facts in a system turn."""
    n: int = Field(default=450, ge=1)
    """Held-out tasks per family at most."""
    n_by_family: dict[str, PositiveInt] = {}
    """Families with another limit than `n`."""
    modes: tuple[Literal["sampled", "greedy"], ...] = ("sampled", "greedy")
    """One sample per task at `temperature`, the likeliest continuation, or both."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled mode: that of training, so that it measures what training rewards."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Tokens an answer may take; a longer one is cut off and scores 0."""
    heldout_documents: int = Field(default=100, ge=0)
    """Windows of 256 held-out tokens per source for bits per byte, where the data artifact is given; 0 skips it."""
    thinking_budgets: tuple[int, ...] = ()
    """Tokens of thinking to try, for the curve of accuracy against tokens in `curve.json`; one without end is added.
    Empty leaves the curve out."""
    curve_families: tuple[str, ...] = REASONING
    """Families the curve is measured on, as far as they are among `families`."""


class EvaluateNextConfig(EvaluateConfig):
    """What the next pretraining is asked: few tasks, since a base answers hardly any, and all the held-out text."""

    n: int = Field(default=60, ge=1)
    """Held-out tasks per family at most."""
