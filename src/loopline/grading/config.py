"""Settings of grader definitions, their audit, and evaluations; the default definitions.

A definition is JSON of the OpenAI grader format (string_check, text_similarity, python, multi) or of one of the own
types final_answer, steps, format_check, refusal and code_tests. Beside the format's fields a definition may name the
`tags` of the tasks it is for. Not covered: rewards (see `reward.py`).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loopline.base.config import Config
from loopline.base.stage import Takes, stage

REASONING = ("arithmetic", "word_problem", "ordering")
FAMILIES = (*REASONING, "code", "format", "safety", "lookup")
DEFAULT_DEFINITIONS: dict[str, dict[str, Any]] = {
    "final_answer": {"type": "final_answer"},
    "steps": {"type": "steps", "tags": ["reasoning"]},
    "code_tests": {"type": "code_tests"},
    "format_check": {"type": "format_check"},
    "refusal": {"type": "refusal"},
    # Kept as a warning: it pays for any text that holds the answer somewhere, and the audit says so.
    "naive_contains": {
        "type": "string_check",
        "operation": "like",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "tags": ["reasoning"],
    },
}


@stage("graders", run="loopline.grading.stage:graders", takes={"tasks": Takes("tasks")}, gives="graders", area=6)
class GradersConfig(Config):
    """Which graders there are, and which of them the line may trust."""

    definitions: dict[str, dict[str, Any]] = DEFAULT_DEFINITIONS
    """Name -> definition."""
    required: tuple[str, ...] = ("final_answer", "steps", "code_tests", "format_check", "refusal")
    """Graders that must pass the audit; the stage refuses to finish otherwise."""
    audit_tasks: int = Field(default=24, ge=4)
    """Tasks each probe is tried on, at most."""
