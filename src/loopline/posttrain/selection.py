"""Which sampled answers become training data, and why the others do not.

    selection = select(groups, config, heldout, rng)       # Selection(rows, rejected, pass_rates)

A group is {"task", "task_set", "messages", "outputs": [{"text", "score", "finish", "tokens"}]}, as one line of
samples.jsonl; an output may carry the "length" of its whole conversation in tokens and a "rank" by a reward model.
Every answer is kept or counted under one reason. Not covered: sampling and grading (see `reject`), the selection of the
line's own stage (see `rft`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopline.posttrain.config import RejectConfig
from loopline.text.overlap import HeldoutText
from loopline.text.words import jaccard, words_of

REASONS = (
    "could not be graded",
    "cut off",
    "wrong",
    "too long",
    "held-out text",
    "prompt too hard",
    "prompt too easy",
    "repeated",
    "near duplicate",
    "not the best",
    "balance",
)
"""Why an answer is not kept, in the order in which the rules are tried."""
QUARTERS = 4


@dataclass(frozen=True)
class Selection:
    """What was kept, and what was not."""

    rows: list[dict[str, Any]]
    """{"task", "task_set", "messages", "given", "score", "pass_rate", "tokens"}."""
    rejected: dict[str, int]
    """Answers by reason."""
    pass_rates: list[float]
    """Of every prompt with a graded answer."""


def passes(output: Mapping[str, Any], config: RejectConfig) -> bool:
    """Whether an answer ended by itself and scored enough."""
    return output["score"] is not None and output["score"] >= config.threshold and output["finish"] == "stop"


def pass_rate(group: Mapping[str, Any], config: RejectConfig) -> float | None:
    """Share of the graded answers that pass; None when none could be graded."""
    graded = [output for output in group["outputs"] if output["score"] is not None]
    return sum(passes(output, config) for output in graded) / len(graded) if graded else None


def select(
    groups: Sequence[Mapping[str, Any]],
    config: RejectConfig,
    heldout: HeldoutText | None,
    rng: np.random.Generator,
    room: int | None = None,
) -> Selection:
    """Apply every rule; the result depends on the arguments alone. `room` is what the model takes, in tokens."""
    rejected: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    rates = [pass_rate(group, config) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        chosen = _of_group(group, rate, config, heldout, rejected, room)
        prompt = [message["content"] for message in group["messages"]]
        for output in chosen:
            key = (*prompt, " ".join(words_of(output["text"])) or output["text"])
            if key in seen:
                # The same prompt may be in the file twice.
                rejected["repeated"] += 1
                continue
            seen.add(key)
            rows.append(
                {
                    "task": group["task"],
                    "task_set": group["task_set"],
                    "messages": [*group["messages"], {"role": "assistant", "content": output["text"]}],
                    "given": len(group["messages"]),
                    "score": output["score"],
                    "pass_rate": rate,
                    "tokens": output["tokens"],
                }
            )
    kept = balance([row["pass_rate"] for row in rows], config.bucket_share, rng)
    rejected["balance"] = len(rows) - len(kept)
    return Selection([rows[number] for number in kept], dict(rejected), [rate for rate in rates if rate is not None])


def _of_group(
    group: Mapping[str, Any],
    rate: float | None,
    config: RejectConfig,
    heldout: HeldoutText | None,
    rejected: Counter[str],
    room: int | None,
) -> list[Mapping[str, Any]]:
    """The answers kept of one prompt, best first; counts the others."""
    longest = config.max_tokens or config.max_new_tokens
    limit = min(config.sequence_length, room or config.sequence_length)
    candidates: list[Mapping[str, Any]] = []
    for output in group["outputs"]:
        if output["score"] is None:
            rejected["could not be graded"] += 1
        elif output["finish"] != "stop":
            rejected["cut off"] += 1
        elif output["score"] < config.threshold:
            rejected["wrong"] += 1
        elif output["tokens"] > longest or output.get("length", 0) > limit:
            rejected["too long"] += 1
        elif heldout is not None and heldout.holds(output["text"]):
            rejected["held-out text"] += 1
        else:
            candidates.append(output)
    if rate is not None and rate < config.min_pass_rate:
        rejected["prompt too hard"] += len(candidates)
        return []
    if rate is not None and rate > config.max_pass_rate:
        rejected["prompt too easy"] += len(candidates)
        return []
    kept: list[Mapping[str, Any]] = []
    texts: set[str] = set()
    for output in sorted(candidates, key=lambda output: _order(output, config)):
        text = " ".join(output["text"].split())
        if text in texts:
            rejected["repeated"] += 1
        elif len(kept) >= config.per_prompt:
            rejected["not the best"] += 1
        elif config.similarity < 1 and any(
            jaccard(text, " ".join(other["text"].split())) >= config.similarity for other in kept
        ):
            rejected["near duplicate"] += 1
        else:
            kept.append(output)
        texts.add(text)
    return kept


def _order(output: Mapping[str, Any], config: RejectConfig) -> tuple[float, int, str]:
    """Sorts a prompt's answers, best first."""
    worth = 0.0 if config.select == "shortest" else float(output.get("rank", output["score"]))
    return -worth, output["tokens"], output["text"]


def quarter(rate: float) -> int:
    """0 for pass rates up to 1/4, ... 3 for those above 3/4."""
    return min(QUARTERS - 1, max(0, int(np.ceil(rate * QUARTERS)) - 1))


def balance(rates: Sequence[float], share: float, rng: np.random.Generator) -> list[int]:
    """Indices kept, in order, so that no quarter of pass rates holds more than `share` of them.

    Of k quarters that have any row each may hold 1/k at least. Rows of a full quarter are dropped at random.
    """
    members: dict[int, list[int]] = {}
    for number, rate in enumerate(rates):
        members.setdefault(quarter(rate), []).append(number)
    sizes = {name: len(rows) for name, rows in members.items()}
    cap = max(sizes.values(), default=0)
    allowed = max(share, 1 / max(len(sizes), 1))
    # Lowering the cap shrinks the largest quarters only, so the first cap that holds keeps most.
    while cap > 1 and cap > allowed * sum(min(size, cap) for size in sizes.values()) + 1e-9:
        cap -= 1
    kept: list[int] = []
    for name in sorted(members):
        rows = members[name]
        kept += rows if len(rows) <= cap else [rows[place] for place in rng.permutation(len(rows))[:cap]]
    return sorted(kept)


def histogram(rates: Sequence[float]) -> dict[str, int]:
    """Prompts by pass rate: none, the four quarters up to below all, all."""
    names = ["0", "0 to 1/4", "1/4 to 1/2", "1/2 to 3/4", "3/4 to 1", "1"]
    counts = dict.fromkeys(names, 0)
    for rate in rates:
        counts["0" if rate == 0 else "1" if rate == 1 else names[1 + quarter(rate)]] += 1
    return counts
