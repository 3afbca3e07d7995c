"""What to try next: one mechanism at a time, chosen from what the incumbent's raw traces show.

    proposal = propose(candidates)          # None when nothing is left to try

The built-in proposer reads the traces of the best harness so far, counts the failures each missing mechanism addresses,
and adds the one with the most. When no failure calls for what is left, it takes mechanisms away, to find the
cheaper harness on the frontier, and then explores those that may help without a symptom. A repair whose fault never
occurs is not tried: it would change nothing. `propose_by_command` asks an outside program instead, a coding agent for
one. Not covered: writing new mechanisms (a mechanism is code in `harness`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loopline.attempts.config import HarnessConfig
from loopline.base.config import sha256_of
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl


@dataclass(frozen=True)
class Candidate:
    """One evaluated harness."""

    name: str
    config: HarnessConfig
    parent: str | None
    mechanism: str
    score: float
    tokens: float
    path: Path
    """Its folder, with traces.jsonl."""

    def traces(self) -> list[dict[str, Any]]:
        """Its raw traces."""
        return read_jsonl(self.path / "traces.jsonl")


@dataclass(frozen=True)
class Proposal:
    """A harness to evaluate, and what it is expected to change."""

    mechanism: str
    config: HarnessConfig
    parent: str
    hypothesis: str


@dataclass(frozen=True)
class Mechanism:
    """One change of a harness, and the symptoms that it addresses."""

    name: str
    changes: Mapping[str, Any]
    symptoms: tuple[str, ...]
    because: str
    explore: str = ""
    """What it may bring where no symptom calls for it; empty for a mere repair."""

    def present(self, config: HarnessConfig) -> bool:
        """Whether `config` has it already."""
        return all(getattr(config, field) == value for field, value in self.changes.items())


# Cheapest first: among mechanisms with equal evidence the earlier is tried first.
MECHANISMS = (
    Mechanism("more-turns", {"max_turns": 16}, ("turn_limit",), "attempts end at the turn limit before they answer"),
    Mechanism(
        "repair-calls", {"repair_malformed": True}, ("malformed_call",), "calls are broken in ways one can repair"
    ),
    Mechanism("route-tools", {"route_unknown_tool": True}, ("unknown_tool",), "calls name tools that do not exist"),
    Mechanism(
        "retry-search",
        {"retry_empty_search": True},
        ("empty_search", "failed_call", "malformed_call"),
        "searches find nothing although the question names what is meant",
    ),
    Mechanism("guard-loops", {"loop_guard": True}, ("repeated_call",), "attempts ask the same thing again"),
    Mechanism("calculate", {"auto_calculate": True}, ("wrong_step",), "written steps have wrong values"),
    Mechanism(
        "bootstrap",
        {"bootstrap_search": True, "top_k": 4, "score_floor": 0.6},
        ("fact_missing",),
        "the facts the question needs never reach the policy",
        explore="answers in fewer turns, since the notes stand before the question",
    ),
    Mechanism(
        "wide-search",
        {"top_k": 4, "score_floor": 0.6},
        ("fact_missing",),
        "one document per search misses a fact",
        explore="needs fewer searches, since each returns all documents that fit as well",
    ),
    Mechanism("prune-results", {"keep_tool_results": 1}, ("context_limit",), "contexts fill up with old results"),
    Mechanism("vote", {"vote": 5}, ("misread",), "answers are wrong although all facts were read"),
)


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Highest score, then fewest tokens, then fewest settings off their defaults, then earliest."""
    return min(
        candidates,
        key=lambda candidate: (
            -candidate.score,
            candidate.tokens,
            len(candidate.config.model_dump(exclude_defaults=True)),
            candidate.name,
        ),
    )


def propose(candidates: Sequence[Candidate]) -> Proposal | None:
    """The next harness to evaluate given those evaluated, or None."""
    incumbent = best_of(candidates)
    tried = {sha256_of(candidate.config.model_dump()) for candidate in candidates}
    rows = incumbent.traces()
    return (
        _addition(incumbent, rows, tried)
        or _removal(incumbent, candidates[0].config, tried)
        or _exploration(incumbent, tried)
    )


def _addition(incumbent: Candidate, rows: Sequence[Mapping[str, Any]], tried: set[str]) -> Proposal | None:
    """The missing mechanism that most of the incumbent's failures call for."""
    failures = [row for row in rows if "wrong_answer" in row["symptoms"]]
    options = []
    for order, mechanism in enumerate(MECHANISMS):
        config = incumbent.config.model_copy(update=dict(mechanism.changes))
        if mechanism.present(incumbent.config) or sha256_of(config.model_dump()) in tried:
            continue
        evidence = sum(1 for row in failures if set(mechanism.symptoms) & set(row["symptoms"]))
        if evidence:
            options.append((-evidence, order, mechanism, config))
    if not options:
        return None
    negative, _, mechanism, config = min(options, key=lambda option: option[:2])
    return Proposal(
        mechanism=mechanism.name,
        config=config,
        parent=incumbent.name,
        hypothesis=f"In {-negative} of {len(failures)} failures of {incumbent.name} {mechanism.because}: "
        f"{mechanism.name} should fix some of them.",
    )


def _removal(incumbent: Candidate, first: HarnessConfig, tried: set[str]) -> Proposal | None:
    """The incumbent without one of its mechanisms."""
    for mechanism in MECHANISMS:
        if not mechanism.present(incumbent.config) or mechanism.present(first):
            continue
        update = {field: getattr(first, field) for field in mechanism.changes}
        config = incumbent.config.model_copy(update=update)
        if sha256_of(config.model_dump()) not in tried:
            return Proposal(
                mechanism=f"no-{mechanism.name}",
                config=config,
                parent=incumbent.name,
                hypothesis=f"{incumbent.name} scores the same without {mechanism.name}, at no higher cost.",
            )
    return None


def _exploration(incumbent: Candidate, tried: set[str]) -> Proposal | None:
    """The incumbent with a mechanism that may help although no failure asks for it."""
    for mechanism in MECHANISMS:
        config = incumbent.config.model_copy(update=dict(mechanism.changes))
        if mechanism.explore and sha256_of(config.model_dump()) not in tried:
            return Proposal(mechanism.name, config, incumbent.name, f"{mechanism.name} {mechanism.explore}.")
    return None


def propose_by_command(
    command: Sequence[str], workspace: Path, candidates: Sequence[Candidate], timeout_s: float
) -> Proposal | None:
    """The proposal an outside program writes to `workspace/proposal.json`, or None when it writes none.

    Raises `UserError` when the program fails, takes too long, or proposes something that is not a new harness.
    """
    path = workspace / "proposal.json"
    path.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            list(command), cwd=workspace, timeout=timeout_s, capture_output=True, text=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"The proposer {command[0]!r} did not finish: {error}", "fix the command, resume") from error
    if done.returncode:
        raise UserError(
            f"The proposer {command[0]!r} ended with status {done.returncode}: {done.stderr.strip()[-300:]}",
            "fix the command, then resume: evaluated candidates are kept",
        )
    if not path.exists():
        return None
    value = read_json(path)
    try:
        base = candidates[0].config.model_dump()
        config = HarnessConfig.model_validate({**base, **value["harness"]})
        name, hypothesis = str(value["name"]), str(value["hypothesis"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a proposal: {error}", 'write {"name", "harness": {changed fields}, "hypothesis"}'
        ) from error
    if any(candidate.config == config for candidate in candidates):
        raise UserError(f"{path} proposes a harness that was evaluated before", "propose another one, or nothing")
    return Proposal(name, config, best_of(candidates).name, hypothesis)
