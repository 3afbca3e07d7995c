"""The outer loop over harness programs: evaluate, write everything down, propose, until the budget is spent.

    candidates = search(workspace, first, evaluate, propose, evaluations=10)

Each candidate is a folder `candidates/<name>` with harness.json, traces.jsonl and search.json, which is written last:
a folder with search.json is finished, so a search that is killed goes on where it stopped. Held-out results are never
written in the workspace, so no proposer can read them. Not covered: the evaluation itself (see `agents.evaluation`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.agents.evaluation import summarize
from loopline.agents.proposer import Candidate, Proposal, best_of
from loopline.attempts.config import HarnessConfig
from loopline.base.files import read_json, write_json, write_jsonl
from loopline.evaluation.statistics import paired_comparison

Evaluate = Callable[[HarnessConfig], list[dict[str, Any]]]
Propose = Callable[[Sequence[Candidate]], Proposal | None]


def search(
    workspace: Path, first: HarnessConfig, evaluate: Evaluate, propose: Propose, evaluations: int
) -> list[Candidate]:
    """Evaluate up to `evaluations` harnesses, the first included; candidates in order of evaluation.

    `workspace/frontier.json` is kept up to date. A candidate already finished in `workspace` is read, not run again.
    """
    candidates: list[Candidate] = []
    finished = {path.parent.name: path.parent for path in sorted(workspace.glob("candidates/*/search.json"))}
    while len(candidates) < evaluations:
        number = len(candidates)
        known = next((path for name, path in finished.items() if name.startswith(f"{number:02d}-")), None)
        if known is not None:
            candidates.append(load_candidate(known))
            continue
        proposal = propose(candidates) if candidates else Proposal("first", first, "", "The harness to beat.")
        if proposal is None:
            break
        candidates.append(_run(workspace, number, proposal, evaluate, candidates))
        write_json(workspace / "frontier.json", frontier(candidates))
    write_json(workspace / "frontier.json", frontier(candidates))
    return candidates


def load_candidate(path: Path) -> Candidate:
    """A finished candidate from its folder."""
    found = read_json(path / "search.json")
    return Candidate(
        name=found["name"],
        config=HarnessConfig.model_validate(read_json(path / "harness.json")),
        parent=found["parent"],
        mechanism=found["mechanism"],
        score=found["score"],
        tokens=found["tokens"],
        path=path,
    )


def frontier(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Score against tokens: all points, those no other beats in both, and the winner (best score, then cheapest)."""
    points = [{"name": c.name, "score": c.score, "tokens": c.tokens, "mechanism": c.mechanism} for c in candidates]
    kept = [c.name for c in candidates if not any(dominates(other, c) for other in candidates)]
    return {
        "first": candidates[0].name,
        "winner": best_of(candidates).name,
        "frontier": kept,
        "points": points,
    }


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is at least as good in score and cost, and better in one of them."""
    at_least = one.score >= other.score and one.tokens <= other.tokens
    return at_least and (one.score > other.score or one.tokens < other.tokens)


def compare(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], names: tuple[str, str], seed: int = 0
) -> dict[str, Any]:
    """Paired comparison of two sets of rows over the same tasks: `difference` is a minus b, and `better` names one of
    them only when the test shows it."""
    found = paired_comparison([row["score"] for row in one], [row["score"] for row in other], seed=seed)
    better = {"a": names[0], "b": names[1], None: None}[found.better]
    return {
        "a": names[0],
        "b": names[1],
        "n": found.n,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "better": better,
    }


def _run(
    workspace: Path, number: int, proposal: Proposal, evaluate: Evaluate, candidates: Sequence[Candidate]
) -> Candidate:
    """Evaluate one proposal and write its folder."""
    slug = re.sub(r"[^a-z0-9-]+", "-", proposal.mechanism.lower()).strip("-")[:40] or "candidate"
    name = f"{number:02d}-{slug}"
    path = workspace / "candidates" / name
    rows = evaluate(proposal.config)
    parent = next((candidate for candidate in candidates if candidate.name == proposal.parent), None)
    write_json(path / "harness.json", proposal.config.model_dump())
    write_jsonl(path / "traces.jsonl", rows)
    found: dict[str, Any] = {
        "name": name,
        "parent": parent.name if parent else None,
        "mechanism": proposal.mechanism,
        "hypothesis": proposal.hypothesis,
        **summarize(rows),
    }
    if parent is not None:
        found["against_parent"] = compare(rows, parent.traces(), (name, parent.name))
    write_json(path / "search.json", found)
    return load_candidate(path)
