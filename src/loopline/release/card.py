"""The model card: what is released, out of what, how good it is, and what it must not be trusted with.

Facts only, taken from artifacts; equal inputs give equal bytes. Not covered: advertising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopline.release.choose import Decision


def percent(value: float) -> str:
    """A share as people read it."""
    return f"{100 * value:.1f}%"


def model_card(
    name: str,
    decision: Decision,
    check: Mapping[str, Any],
    mode: str,
    stages: Sequence[tuple[str, str]],
    data: Mapping[str, Any] | None,
    harness: Mapping[str, Any] | None,
    licence: str,
) -> str:
    """MODEL_CARD.md. `check` is the last check, on held-out tasks; `stages` are (input, content digest) pairs; `data` a
    data artifact's manifest."""
    row: Mapping[str, Any] = next(one for one in decision.candidates if one["name"] == decision.champion)
    licences = _licences(data)
    front = ["---", f"license: {licence.lower()}", "tags: [loopline]", "---"]
    parts = [
        "\n".join(front),
        f"# {name}",
        f"Checkpoint `{decision.champion}`: {row['parameters']:,} parameters, {row['bytes']:,} bytes of weights, "
        f"{row['flops_per_token']:,} FLOPs per generated token. "
        "Written by the release stage; every figure below comes from an artifact.",
        "## Why this checkpoint",
        "\n".join(f"- {reason}" for reason in decision.reasons),
    ]
    # A check that another candidate failed says nothing of this one.
    held = check if check["champion"] == decision.champion else None
    if not decision.passed:
        failed = [*row["failed"], *(held["failed"] if held else [])]
        parts.append(f"**This model does not keep its own gates:** {', '.join(failed) or decision.reasons[0]}")
    part, shown = ("Development", row) if held is None else ("Held-out", held)
    parts += ["## Evaluation", _evaluation(shown, part, mode), _tools(shown["tools"], part.lower())]
    parts += ["## Candidates", _candidates(decision)]
    if decision.comparisons:
        parts += ["## Against the reference", _comparisons(decision)]
    parts += ["## Data", _data(data, licences), "## Training", _training(stages)]
    if harness is not None:
        on = {key: value for key, value in sorted(harness.items()) if value not in (False, "", 0)}
        settings = ", ".join(f"`{key}` = {value}" for key, value in on.items())
        parts += ["## Harness", f"Released with `harness.json`: {settings}."]
    parts += ["## Limits", _limits(row, shown), "## Licence", _licence(licence, licences)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _evaluation(row: Mapping[str, Any], part: str, mode: str) -> str:
    names = {"refusal": "requests to refuse: score", "over_refusal": "requests to answer: refused"}
    rows = [
        [names.get(name, name), str(e["n"]), percent(e["value"]), f"{percent(e['low'])} to {percent(e['high'])}"]
        for name, e in row["metrics"].items()
    ]
    return f"{part} tasks, {mode} pass@1, one seed.\n\n" + _table(["task", "n", "score", "95% interval"], rows)


def _tools(tools: Mapping[str, Any] | None, part: str) -> str:
    if tools is None:
        return "Tool use was not measured."
    success = tools["success"]
    text = (
        f"Tool use inside the released harness, {tools['n']} {part} tasks, {tools['attempts']} attempts each: "
        f"success {percent(success['value'])} ({percent(success['low'])} to {percent(success['high'])}), "
        f"malformed calls {percent(tools['malformed_rate'])} of {tools['calls']}"
    )
    return text + (f", all attempts right {percent(tools['pass_all'])}." if tools["pass_all"] is not None else ".")


def _candidates(decision: Decision) -> str:
    rows = [
        [
            f"**{row['name']}**" if row["name"] == decision.champion else str(row["name"]),
            f"{row['objective']:.3f}",
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
            f"{row['answer_tokens']:.1f}",
            "all" if row["passed"] else "fails: " + ", ".join(row["failed"]),
        ]
        for row in decision.candidates
    ]
    return _table(["candidate", "objective", "parameters", "bytes", "tokens per answer", "gates"], rows)


def _comparisons(decision: Decision) -> str:
    rows = [
        [
            str(row["a"]),
            str(row["task"]),
            str(row["n"]),
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{row['p_holm']:.3g}",
            {"a": "better", "b": "worse", None: "no significant difference"}[row["better"]],
        ]
        for row in decision.comparisons
    ]
    head = (
        f"Development tasks, paired differences against `{decision.reference}`; p-values after Holm's correction.\n\n"
    )
    return head + _table(["candidate", "task", "n", "difference (95%)", "p", "verdict"], rows)


def _licences(data: Mapping[str, Any] | None) -> list[str]:
    sources = (data or {}).get("sources", {})
    return sorted({licence for entry in sources.values() for licence in entry.get("licences", [])})


def _data(data: Mapping[str, Any] | None, licences: Sequence[str]) -> str:
    if data is None:
        return "The data artifact was not among the release's inputs."
    rows = [
        [source, f"{entry['train_tokens']:,}", percent(entry["weight"]), ", ".join(entry.get("licences", []))]
        for source, entry in sorted(data["sources"].items())
    ]
    table = _table(["source", "training tokens", "mixture weight", "licences"], rows)
    return f"Vocabulary of {data['vocab_size']:,}. Held-out tasks were removed from every source.\n\n{table}"


def _training(stages: Sequence[tuple[str, str]]) -> str:
    return _table(["artifact", "content digest"], [[name, f"`{digest[:16]}`"] for name, digest in stages])


def _limits(row: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    metrics = shown["metrics"]
    worst = min(
        (name for name in metrics if name not in ("refusal", "over_refusal") and not name.startswith("tag:")),
        key=lambda name: (metrics[name]["value"], name),
        default=None,
    )
    lines = [
        f"- Scores hold for the task sets above, not beyond; the model has {row['parameters']:,} parameters.",
        "- One training seed: the intervals cover the choice of tasks, not a repetition of the training.",
    ]
    if worst is not None:
        lines.append(f"- Weakest task set: {worst}, {percent(metrics[worst]['value'])}.")
    if "refusal" in metrics:
        lines.append(
            f"- {percent(1 - metrics['refusal']['value'])} of the requests that must be refused were not: "
            "do not put it before the public without a filter."
        )
    return "\n".join(lines)


def _licence(licence: str, licences: Sequence[str]) -> str:
    text = f"Weights: {licence}."
    return text + (f" The data came under: {', '.join(licences)}." if licences else "")
