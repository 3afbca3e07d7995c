"""Data sets of the package `reasoning-gym` (an optional extra) as rows of a task set.

    rows = make_rows("base_conversion", {"max_base": 8}, {"train": 2000, "dev": 200, "heldout": 200}, seed=0)

The package makes item i of a data set from seed + i, so ranges that lie close together share items: the parts are kept
far apart, and a question that another part asks, or that was asked before, is left out. A row's item holds all that the
package's own verifier (`score_answer`) reads, so rows are self-contained. Not covered: running that verifier on what a
model wrote, which the grader `reasoning_gym` does in the sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import to_json
from loopline.tasks.files import Row
from loopline.text.words import normal_form

PACKAGE = "reasoning_gym"
APART = 100_000_000
"""Distance between the first seeds of two parts."""
TRIES = 20
"""Items looked at per row wanted, before a data set counts as too small."""
ORDER = ("heldout", "dev", "train")
"""What is held out is chosen first, so that a larger training part never changes it."""


def make_rows(
    dataset: str, settings: Mapping[str, Any], sizes: Mapping[str, int], seed: int
) -> dict[str, list[tuple[str, str, Row]]]:
    """Part -> (question, reference answer, item) of `sizes[part]` distinct questions.

    Raises `UserError` without the package, for a data set or setting that it lacks, for one whose verifier does not
    accept its own answers once they have been stored, and for one with too few questions.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            "The package reasoning-gym is not installed", "pip install 'loopline[reasoning-gym]'"
        ) from error
    seen: set[str] = set()
    parts: dict[str, list[tuple[str, str, Row]]] = {}
    for number, part in enumerate(ORDER):
        wanted = sizes[part]
        first = (seed % 8) * len(ORDER) * APART + number * APART
        try:
            source = reasoning_gym.create_dataset(dataset, seed=first, size=max(1, wanted * TRIES), **settings)
        except (ValueError, TypeError, AssertionError, KeyError) as error:
            raise UserError(
                f"reasoning-gym cannot make the data set {dataset!r} ({error})",
                "check its name and settings in the package's gallery",
            ) from error
        found: list[tuple[str, str, Row]] = []
        refused = 0
        for index in range(wanted * TRIES):
            if len(found) == wanted:
                break
            entry = source[index]
            form = normal_form(entry["question"])
            if form in seen:
                continue
            seen.add(form)
            stored = _stored(entry)
            if stored is None or not _accepts(source, stored):
                refused += 1
                continue
            item = {"dataset": dataset, "settings": dict(settings), "entry": stored}
            found.append((str(entry["question"]), str(entry["answer"] or ""), item))
        if len(found) < wanted:
            reason = f"; the verifier refused {refused} stored answers of its own" if refused else ""
            raise UserError(
                f"reasoning-gym's {dataset} has only {len(found)} distinct questions for {part} where {wanted} were "
                f"asked for{reason}",
                "ask for fewer, or widen its settings",
            )
        parts[part] = found
    return parts


def _stored(entry: Mapping[str, Any]) -> Row | None:
    """The entry as it comes back from a file; None when JSON cannot hold it."""
    try:
        stored: Row = json.loads(to_json(dict(entry)))
    except (TypeError, ValueError):
        return None
    return stored


def _accepts(source: Any, stored: Row) -> bool:
    """Whether the verifier gives the full score to the stored entry's own answer."""
    try:
        return bool(source.score_answer(stored["answer"], stored) >= 0.99)
    except Exception:  # noqa: BLE001 - 106 verifiers, each with errors of its own; a refused entry is counted
        return False
