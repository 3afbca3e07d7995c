"""Loop A's data: production traffic with consent becomes fine-tuning and preference rows.

Use: `collect(requests, held_out, config)` gives (rows, preference rows, funnel rows). Order: consent, finish, scrub,
exact copies, held-out tasks, labels. Feedback decides the label: positive feedback makes the answer an example, a
correction makes a preference pair (and an example of the correction), negative feedback alone is counted and teaches
nothing here. Not covered: learning from negative feedback without a correction (that needs a reward model), how
feedback is given (see `serve`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loopline.base.files import to_json
from loopline.corpus.config import TrafficDataConfig
from loopline.corpus.document import Document, digest, make_document
from loopline.corpus.funnel import Change, Funnel
from loopline.corpus.pii import clean, scrub
from loopline.text.index import TextIndex

Row = dict[str, Any]
_TEXT_KEYS = ("content", "response", "value", "output_text")


def collect(
    requests: Sequence[Mapping[str, Any]], held_out: TextIndex, config: TrafficDataConfig
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows for rows.jsonl, preferences.jsonl and funnel.json from the rows of requests.jsonl."""
    # The funnel runs over documents; a request is one document, its JSON the text.
    funnel = Funnel(
        [make_document("traffic", str(row["id"]), to_json(row)) for row in requests], config.samples, censor=clean
    )
    funnel.apply("consent", _consent(funnel.documents))
    funnel.apply("finish", _finish(funnel.documents, config))
    funnel.apply("scrub", _scrub(funnel.documents))
    funnel.apply("duplicates", _duplicates(funnel.documents))
    funnel.apply("decontaminate", _decontaminate(funnel.documents, held_out))
    sft: list[Row] = []
    preferences: list[Row] = []
    change = Change()
    for number, document in enumerate(funnel.documents):
        row = json.loads(document.text)
        label, correction = judge(row, config)
        change.counts[f"label: {label}"] += 1
        if label in ("unlabelled", "bad without a correction", "contradicted"):
            change.removed[number] = label
            del change.counts[f"label: {label}"]
            continue
        answer = _answer(row) if correction is None else _message(correction)
        # Only the answer to imitate carries loss: what was said before was not labelled.
        given = len(row["messages"])
        sft.append({"id": row["id"], "messages": [*row["messages"], answer], "given": given, "source": "traffic"})
        if correction is not None:
            preferences.append(preference(row, correction))
    funnel.apply("label", change)
    return sft, preferences, _without_private_text(funnel.rows())


def judge(row: Mapping[str, Any], config: TrafficDataConfig) -> tuple[str, str | None]:
    """The label of one request and the correction it carries, if any; the latest correction counts."""
    good = bad = False
    correction: str | None = None
    for item in row.get("feedback") or ():
        name, value = item.get("name"), item.get("value")
        if name in config.correction and isinstance(value, str) and value.strip():
            correction = value
        elif name in config.good:
            good |= _positive(value)
            bad |= not _positive(value)
        elif name in config.bad:
            bad |= _positive(value)
    if correction is not None and correction.strip() != _text(row).strip():
        return "corrected", correction
    if good and bad:
        return "contradicted", None
    if good:
        return "good", None
    return ("bad without a correction" if bad else "unlabelled"), None


def preference(row: Mapping[str, Any], correction: str) -> Row:
    """One row of the OpenAI preference format: the correction over what the model said."""
    return {
        "id": row["id"],
        "input": {"messages": row["messages"]},
        "preferred_output": [_message(correction)],
        "non_preferred_output": [_answer(row)],
    }


def _positive(value: Any) -> bool:
    """True, a number above zero, or any text but a denial; no value at all means the name alone was said."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().lower() not in {"", "false", "no", "0", "-1", "down"}
    return bool(value) and (isinstance(value, bool) or value > 0)


def _text(row: Mapping[str, Any]) -> str:
    response = row["response"]
    return str(response["content"] or "") if isinstance(response, Mapping) else str(response)


def _answer(row: Mapping[str, Any]) -> Row:
    return _message(_text(row))


def _message(content: str) -> Row:
    return {"role": "assistant", "content": content}


def _consent(documents: Sequence[Document]) -> Change:
    refused = {n for n, document in enumerate(documents) if json.loads(document.text).get("consent") is not True}
    return Change(removed=dict.fromkeys(sorted(refused), "no consent"))


def _finish(documents: Sequence[Document], config: TrafficDataConfig) -> Change:
    change = Change()
    for number, document in enumerate(documents):
        row = json.loads(document.text)
        size = sum(len(message.get("content") or "") for message in row["messages"]) + len(_text(row))
        if row.get("finish") == "length":
            change.removed[number] = "answer cut off"
        elif not _text(row).strip() or not row["messages"]:
            change.removed[number] = "empty"
        elif size > config.max_characters:
            change.removed[number] = "too long"
    return change


def _scrub(documents: Sequence[Document]) -> Change:
    change = Change()
    for number, document in enumerate(documents):
        before = json.loads(document.text)
        counts: dict[str, int] = {}
        row = _scrubbed(before, counts)
        if counts:
            change.edited[number] = document.with_text(to_json(row))
            for kind, count in counts.items():
                change.counts[kind] += count
    return change


def _scrubbed(value: Any, counts: dict[str, int]) -> Any:
    """The same JSON value with every piece of conversation text scrubbed; ids and numbers stay."""
    if isinstance(value, list):
        return [_scrubbed(item, counts) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, item in value.items():
        if key in _TEXT_KEYS and isinstance(item, str):
            item, found = scrub(item)
            for kind, count in found.items():
                counts[kind] = counts.get(kind, 0) + count
        out[key] = _scrubbed(item, counts)
    return out


def _duplicates(documents: Sequence[Document]) -> Change:
    change = Change()
    seen: set[str] = set()
    for number, document in enumerate(documents):
        row = json.loads(document.text)
        said = [
            (message["role"], " ".join((message.get("content") or "").split()).lower()) for message in row["messages"]
        ]
        key = digest(to_json([said, _text(row), row.get("feedback") or []]))
        if key in seen:
            change.removed[number] = "same conversation"
        seen.add(key)
    return change


def _decontaminate(documents: Sequence[Document], held_out: TextIndex) -> Change:
    """A conversation that holds a held-out task is dropped: half a conversation teaches nothing."""
    texts = []
    for document in documents:
        row = json.loads(document.text)
        said = [message.get("content") or "" for message in row["messages"]]
        said += [item["value"] for item in row.get("feedback") or () if isinstance(item.get("value"), str)]
        texts.append("\n\n".join([*said, _text(row)]))
    return Change(removed={match.text: "holds a held-out task" for match in held_out.find(texts, whole_only=False)})


def _without_private_text(rows: list[Row]) -> list[Row]:
    """The funnel table of traffic names requests and reasons; what people wrote without consent is not repeated."""
    return [
        {**row, "samples": [{**sample, "excerpt": ""} for sample in row["samples"]]}
        if row["step"] == "consent"
        else row
        for row in rows
    ]
