"""What an environment owes to training and to harness search: tasks reset to the same bytes, tools, outcome grading.

Implement `Environment` to bring your own; `environments.search` is a worked case and
`evaluation.environment_audit` checks any of them.

The environment owns the tasks' state, the tools and the grading of outcomes. It does not own prompts, retries or turn
limits: those belong to the harness (`attempts.program`), so that a policy is trained in, and a harness is searched
against, one and the same environment. Not covered: environments on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loopline.base.files import to_json
from loopline.chat.forms.form import Call
from loopline.chat.tools import Tool, ToolResult, error_result
from loopline.grading.grade import Grade, Sample
from loopline.inference.trajectory import Trajectory
from loopline.tasks.task import Task


@dataclass
class EpisodeState:
    """All that changes during one attempt at one task."""

    task_id: str
    world: str
    """Digest of what the tools read (documents, files, tables)."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Calls so far: name and arguments."""

    def snapshot(self) -> bytes:
        """The state as canonical bytes: equal bytes, equal futures."""
        return to_json({"task_id": self.task_id, "world": self.world, "calls": self.calls}).encode("utf-8")


class OutcomeGraders(Protocol):
    """What an environment needs of a grader set: `grading.graders.GraderSet` is one."""

    def grade(self, samples: Sequence[Sample]) -> list[Grade]:
        """One grade per sample, in order, each by its task's own grader."""
        ...


class Environment(Protocol):
    """Tasks, state, tools and outcome grading."""

    name: str

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools a policy may call, by name."""
        ...

    def finder(self, question: str) -> Call | None:
        """The call that finds what `question` is about, or None where the environment has no such tool.

        Harness mechanisms that look something up on the policy's behalf use it.
        """
        ...

    def reset(self, task: Task) -> EpisodeState:
        """A fresh state for `task`; the same task always gives the same `snapshot()`."""
        ...

    def call(self, state: EpisodeState, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool; equal states and calls give equal results. A wrong call gives `ok=False`, not an exception."""
        ...

    def grade(self, tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> list[Grade]:
        """The outcome of each trajectory, in order. A score of None means it could not be graded."""
        ...


def call_tool(tools: Mapping[str, Tool], state: EpisodeState, name: str, arguments: Mapping[str, Any]) -> ToolResult:
    """Record the call in `state` and run it: what `Environment.call` does when tools hold no state of their own."""
    state.calls.append({"name": name, "arguments": dict(arguments)})
    if name not in tools:
        return error_result(f"there is no tool {name}; tools: {', '.join(sorted(tools))}")
    return tools[name].call(arguments)
