"""Preference pairs by a written constitution.

The policy answers safety requests; each answer is judged by the principle its request falls under (Bai et al. 2022,
arXiv:2212.08073, with a program as the judge). An answer that follows the principle is chosen over one that does not.
The rejected one is, where there is one, an answer of the opposite conduct: a refusal where help was due, help where a
refusal was. Where no sample follows it, the revision written for that principle is chosen; where all do, there is
nothing to learn.
Pairs of a right and a wrong answer to reasoning tasks keep reasoning from paying for manners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from loopline.attempts.ask import ask
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine, Sampling
from loopline.tasks.task import Task

ALIKE = 2.0
"""Two answers to a reasoning task form a pair when neither is longer than this many times the other."""
OPPOSITE = frozenset({"over_refusal", "unsafe_help"})
"""Flags of an answer that does the opposite of what its principle asks."""


def unlike(first: str, second: str) -> float:
    """How many times the longer of two texts is as long as the shorter."""
    short, long = sorted((len(first), len(second)))
    return long / max(short, 1)


def build_pairs(
    engine: Engine,
    tasks: Sequence[Task],
    graders: GraderSet,
    constitution: Mapping[str, Mapping[str, Any]],
    sampling: Sampling,
    seed: int,
    state: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows in OpenAI's preference format, at most one per task, and a count of where they came from."""
    groups = ask(engine, tasks, sampling, graders=graders, seed=seed, state=state, progress=progress)
    pairs: list[dict[str, Any]] = []
    counts = {"sampled": 0, "revised": 0, "all follow": 0, "none follow": 0, "could not be graded": 0, "unlike": 0}
    for task, group in zip(tasks, groups, strict=True):
        scored = [(attempt.text, attempt.score) for attempt in group]
        good = list(dict.fromkeys(text for text, score in scored if score == 1))
        principle = task.item.get("principle", "correct")
        chosen, origin = None, "sampled"
        if good:
            chosen = good[0]
        elif principle in constitution:
            chosen, origin = task.responses[0]["messages"][-1]["content"], "revised"
        # An answer cut off just before its end reads like a good one: it must not be preferred to itself.
        wrong = {text for text, score in scored if score == 0 and text} - {chosen, *good}
        # The opposite conduct before a clumsy try at the right one: manners are what this step is to teach.
        opposite = {a.text for a in group if a.grade is not None and OPPOSITE.intersection(a.grade.flags)} & wrong
        bad = sorted(opposite or wrong, key=lambda text: (len(text), text))
        if not bad:
            graded = any(score is not None for _, score in scored)
            counts["all follow" if good else "none follow" if graded else "could not be graded"] += 1
            continue
        if chosen is None:
            counts["none follow"] += 1
            continue
        rejected = bad[len(bad) // 2]
        if principle not in constitution:
            # These pairs are to keep reasoning as it is: a thought-out answer against a short one would teach length.
            chosen, rejected = min(product(good, bad), key=lambda pair: unlike(*pair))
            if unlike(chosen, rejected) > ALIKE:
                counts["unlike"] += 1
                continue
        counts[origin] += 1
        pairs.append(
            {
                "input": {"messages": list(task.messages)},
                "preferred_output": [{"role": "assistant", "content": chosen}],
                "non_preferred_output": [{"role": "assistant", "content": rejected}],
                "principle": principle,
                "origin": origin,
                "task": task.id,
            }
        )
    return pairs, counts
