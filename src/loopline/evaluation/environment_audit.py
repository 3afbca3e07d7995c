"""Check an environment before any policy is trained or searched in it.

    report = audit_environment(environment, tasks, tokenizer)
    require(report)          # raises UserError naming the probes that failed

Probes: two resets give the same bytes; equal calls give equal results; what tools return today is what the recorded
responses say they returned; a policy that replays the recorded responses scores 1; one that says nothing, and one that
only calls tools, score 0. Training in an environment that fails would teach its faults. Not covered: load, timeouts,
isolation (see `sandbox`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness
from loopline.attempts.scripted import ScriptedEngine, tool_response
from loopline.base.errors import UserError
from loopline.chat.forms.form import Call
from loopline.chat.parser import recorded
from loopline.chat.tokenizer import Tokenizer
from loopline.environments.environment import Environment
from loopline.inference.engine import Engine, Sampling
from loopline.tasks.task import Task

MAX_TURNS = 16
EXAMPLES = 3


def audit_environment(environment: Environment, tasks: Sequence[Task], tokenizer: Tokenizer) -> dict[str, Any]:
    """Run every probe on `tasks`: {"environment", "passed", "probes": [{"probe", "n", "failures", "examples"}]}.

    Raises `UserError` when no task has a tool-style response to replay.
    """
    recorded = [task for task in tasks if tool_response(task) is not None]
    if not recorded:
        raise UserError(
            "None of the tasks has a recorded tool-style response, so the environment cannot be audited",
            'give tasks a response {"style": "tool", "messages": [...]} that solves them',
        )
    oracle = ScriptedEngine.oracle(tokenizer, recorded)
    silent = ScriptedEngine(tokenizer, lambda prompt: "")
    call = tokenizer.form.write([Call(sorted(environment.tools)[0], {})])
    probes = [
        _probe("reset_same_bytes", recorded, lambda task: _reset_problem(environment, task)),
        _probe("tools_deterministic", recorded, lambda task: _replay_problem(environment, task, compare=False)),
        _probe("tools_match_recorded", recorded, lambda task: _replay_problem(environment, task, compare=True)),
        _scored("oracle_scores_one", environment, recorded, oracle, 1.0),
        _scored("silence_scores_zero", environment, recorded, silent, 0.0),
        _scored("calls_alone_score_zero", environment, recorded, ScriptedEngine(tokenizer, lambda prompt: call), 0.0),
    ]
    passed = all(not probe["failures"] for probe in probes)
    return {"environment": environment.name, "passed": passed, "probes": probes}


def require(report: dict[str, Any]) -> None:
    """Raise `UserError` unless the audit passed."""
    failed = [probe for probe in report["probes"] if probe["failures"]]
    if not failed:
        return
    parts = [
        f"{probe['probe']} failed on {probe['failures']} of {probe['n']} tasks (for one: {probe['examples'][0]})"
        for probe in failed
    ]
    raise UserError(
        f"The environment {report['environment']!r} did not pass its audit: " + "; ".join(parts),
        "fix the environment or the tasks first: a policy trained in it would learn its faults",
    )


def _probe(name: str, tasks: Sequence[Task], problem: Callable[[Task], str | None]) -> dict[str, Any]:
    found = [f"{task.id}: {text}" for task in tasks if (text := problem(task)) is not None]
    return {"probe": name, "n": len(tasks), "failures": len(found), "examples": found[:EXAMPLES]}


def _reset_problem(environment: Environment, task: Task) -> str | None:
    first, second = environment.reset(task).snapshot(), environment.reset(task).snapshot()
    return None if first == second else "two resets gave different bytes"


def _replay_problem(environment: Environment, task: Task, compare: bool) -> str | None:
    """Play the recorded calls, twice or against the recorded results."""
    messages = list(tool_response(task) or ())
    one, other = environment.reset(task), environment.reset(task)
    for message, following in zip(messages, messages[1:], strict=False):
        calls = recorded(message).tool_calls if message["role"] == "assistant" else ()
        if not calls:
            continue
        call = calls[0]
        result = environment.call(one, call.name, call.arguments)
        again = environment.call(other, call.name, call.arguments)
        if not compare and (result != again or one.snapshot() != other.snapshot()):
            return f"{call.name} gave {result.text!r}, then {again.text!r}"
        if compare and following["role"] == "tool" and result.text != following["content"]:
            return f"{call.name} gives {result.text!r}, the recorded response has {following['content']!r}"
    return None


def _scored(
    name: str, environment: Environment, tasks: Sequence[Task], engine: Engine, expected: float
) -> dict[str, Any]:
    """Every task must score exactly `expected` under a scripted policy."""
    harness = Harness(HarnessConfig(max_turns=MAX_TURNS, max_context_tokens=1_000_000))
    trajectories = harness.run(engine, environment, tasks, Sampling(max_new_tokens=4096, temperature=0))
    grades = environment.grade(tasks, trajectories)
    found = [
        f"{task.id}: scored {grade.score} with the answer {run.answer[:60]!r}"
        for task, run, grade in zip(tasks, trajectories, grades, strict=True)
        if grade.score != expected
    ]
    return {"probe": name, "n": len(tasks), "failures": len(found), "examples": found[:EXAMPLES]}
