"""Preference pairs from graded answers.

    rows, counts = build_pairs(groups, retain={...}, written=True, principles={})

Of a task that shows conduct the chosen answer is one that its grader passes; where no sample does, the answer written
for the task. The rejected one is, where there is one, an answer of the opposite conduct: a refusal where help was due,
help where a refusal was. Of a task that is to be retained both sides are samples of like length, so that the pairs do
not teach length. Where all samples pass there is nothing to learn. Not covered: sampling (see `align`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from loopline.attempts.attempt import Attempt

ALIKE = 2.0
"""Two answers to a task that is to be retained form a pair when neither is longer than this many times the other."""
OPPOSITE = frozenset({"over_refusal", "unsafe_help"})
"""Flags of an answer that does the opposite of what is wanted."""


def unlike(first: str, second: str) -> float:
    """How many times the longer of two texts is as long as the shorter."""
    short, long = sorted((len(first), len(second)))
    return long / max(short, 1)


def build_pairs(
    groups: Sequence[Sequence[Attempt]], retain: Collection[str], written: bool, principles: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows in OpenAI's preference format, at most one per task, and a count of where they came from.

    `retain` holds ids of the tasks to be retained; `principles` are quoted by the id that a task names.
    """
    rows: list[dict[str, Any]] = []
    counts = {"sampled": 0, "written": 0, "all pass": 0, "none pass": 0, "could not be graded": 0, "unlike": 0}
    for group in groups:
        task = group[0].task
        keeps = task.id in retain
        good = list(dict.fromkeys(attempt.text for attempt in group if attempt.score == 1))
        chosen, origin = (good[0] if good else None), "sampled"
        if chosen is None and written and task.responses and not keeps:
            chosen, origin = str(task.responses[0]["messages"][-1]["content"]), "written"
        # An answer cut off just before its end reads like a good one: it must not be preferred to itself.
        wrong = {attempt.text for attempt in group if attempt.score == 0 and attempt.text} - {chosen, *good}
        # The opposite behaviour before a failed try at the wanted one: the behaviour is what this step teaches.
        opposite = {a.text for a in group if a.grade is not None and OPPOSITE.intersection(a.grade.flags)} & wrong
        bad = sorted(opposite or wrong, key=lambda text: (len(text), text))
        if not bad or chosen is None:
            graded = any(attempt.score is not None for attempt in group)
            counts["all pass" if good and not bad else "none pass" if graded else "could not be graded"] += 1
            continue
        rejected = bad[len(bad) // 2]
        if keeps:
            chosen, rejected = min(product(good, bad), key=lambda pair: unlike(*pair))
            if unlike(chosen, rejected) > ALIKE:
                counts["unlike"] += 1
                continue
        counts[origin] += 1
        principle = str(task.item.get("principle", "")) if not keeps else ""
        rows.append(
            {
                "id": task.id,
                "task_set": task.task_set,
                "input": {"messages": list(task.messages)},
                "preferred_output": [{"role": "assistant", "content": chosen}],
                "non_preferred_output": [{"role": "assistant", "content": rejected}],
                "origin": origin,
                **(
                    {"principle": principle, "principle_text": principles[principle]} if principle in principles else {}
                ),
            }
        )
    return rows, counts


def pair_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in OpenAI's preference format as training reads it."""
    return {
        "id": row["id"],
        "prompt": row["input"]["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }
