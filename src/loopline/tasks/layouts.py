"""Layouts of data files, and what each becomes.

    found = normalize(table, "pairs", settings)          # Normalized(layout, rows, counts)

| for | columns |
|---|---|
| conversations (sft) | `messages`, or `conversations`, or `prompt` and `completion` |
| pairs (reward, dpo) | `prompt`, `chosen`, `rejected`; `chosen` and `rejected` alone, as messages or transcripts; or OpenAI's `input`, `preferred_output`, `non_preferred_output` |
| labels (dpo with loss=kto, reward with loss=pointwise) | `prompt`, `completion`, `label`; or pairs, each of which makes two |
| steps (reward with loss=process) | `prompt`, `steps` (a list of texts), `labels` (a list of true/false) |
| prompts (grpo, reject) | `prompt` or `messages`; every column is `item.<column>` to graders, `answer` is the reference |

Other names are mapped by `columns`. Mistakes are refused with the row they are in. Not covered: several files at once.
"""  # noqa: E501

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loopline.base.errors import UserError
from loopline.tasks.config import DataConfig
from loopline.tasks.files import Row, Table
from loopline.tasks.messages import Message, is_empty, shared_prompt, split_transcript, to_messages

LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "conversations": (("messages",), ("conversations",), ("prompt", "completion")),
    "pairs": (
        ("input", "preferred_output", "non_preferred_output"),
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
    ),
    "labels": (
        ("prompt", "completion", "label"),
        ("input", "preferred_output", "non_preferred_output"),
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
    ),
    "steps": (("prompt", "steps", "labels"), ("prompt", "completions", "labels")),
    "prompts": (("prompt",), ("messages",)),
}
"""What a file may hold for each purpose, the columns of one layout together."""
OPTIONAL = {
    "conversations": ("id",),
    "pairs": ("id",),
    "labels": ("id",),
    "steps": ("id",),
    "prompts": ("id", "answer"),
}
SYNONYMS = {
    "prompt": ("question", "instruction", "query", "problem", "input", "request", "user", "text"),
    "completion": ("answer", "response", "output", "solution", "target", "reply", "assistant"),
    "answer": ("solution", "target", "gold", "reference", "final_answer", "output", "response"),
    "chosen": ("preferred", "better", "accepted", "response_j", "win", "positive"),
    "rejected": ("dispreferred", "worse", "non_preferred", "response_k", "lose", "negative"),
    "label": ("score", "rating", "is_good", "thumbs_up", "desirable"),
    "steps": ("completions", "solution_steps", "chain"),
    "labels": ("ratings", "step_labels", "correct"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
}
SHOWN = 5
"""Rows that a message names before it only counts them."""


@dataclass(frozen=True)
class Normalized:
    """A file's rows in one form."""

    layout: tuple[str, ...]
    """The columns they came from."""
    rows: list[Row]
    counts: dict[str, int]
    """Rows left out, by reason."""


def check_columns(table: Table, purpose: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The layout that the file has under the mapping `columns` (wanted name -> the file's). Raises `UserError`."""
    known = sorted({name for layout in LAYOUTS[purpose] for name in layout} | set(OPTIONAL[purpose]))
    for wanted, given in columns.items():
        if wanted not in known:
            raise UserError(
                f"--columns {wanted}={given}: there is no column {wanted!r} to fill", f"use {', '.join(known)}"
            )
        if given not in table.columns:
            raise UserError(
                f"--columns {wanted}={given}: {table.name} has no column {given!r}",
                f"it has {', '.join(table.columns)}{_close(given, table.columns)}",
            )
    have = set(table.columns) | set(columns)
    for layout in LAYOUTS[purpose]:
        if have.issuperset(layout):
            return layout
    wanted = "; or ".join(" and ".join(layout) for layout in LAYOUTS[purpose])
    raise UserError(
        f"{table.name} has the columns {', '.join(table.columns)}, but this command reads {wanted}",
        _proposal(table.columns, purpose, columns),
    )


def _close(word: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _proposal(columns: Sequence[str], purpose: str, given: Mapping[str, str]) -> str:
    """The `--columns` that would most likely do."""
    for layout in LAYOUTS[purpose]:
        free = [name for name in columns if name not in given.values()]
        found = dict(given)
        for wanted in layout:
            if wanted in found or wanted in columns:
                continue
            match = _match(wanted, free)
            if match is None:
                break
            found[wanted] = match
            free.remove(match)
        else:
            return f"name them with --columns {','.join(f'{name}={found[name]}' for name in found)}"
    example = next(layout for layout in LAYOUTS[purpose] if "prompt" in layout or len(layout) > 1)
    return f"name them with --columns {','.join(f'{name}=<your column>' for name in example)}"


def _match(wanted: str, names: Sequence[str]) -> str | None:
    lower = {name.lower().strip(): name for name in names}
    for candidate in (wanted, *SYNONYMS.get(wanted, ())):
        if candidate in lower:
            return lower[candidate]
    near = difflib.get_close_matches(wanted, lower, n=1, cutoff=0.75)
    return lower[near[0]] if near else None


def normalize(table: Table, purpose: str, config: DataConfig) -> Normalized:
    """The rows in the form that training reads. Raises `UserError` for columns, ids and rows that cannot be used."""
    layout = check_columns(table, purpose, config.columns)
    rows = table.rows if config.limit is None else table.rows[: config.limit]
    names = {wanted: config.columns.get(wanted, wanted) for wanted in (*layout, *OPTIONAL[purpose])}
    convert = {
        "conversations": _conversation,
        "pairs": _pair,
        "labels": _labelled,
        "steps": _steps,
        "prompts": _prompt,
    }[purpose]
    paired = purpose == "labels" and "label" not in layout
    convert = _pair if paired else convert
    found: list[Row] = []
    empty: list[int] = []
    counts: Counter[str] = Counter()
    for number, name, row in _with_ids(table, rows, names["id"]):
        place = table.place(number)
        cells = {wanted: row.get(given) for wanted, given in names.items() if wanted != "id"}
        for wanted in layout:
            if cells[wanted] is None:
                raise UserError(f"{place}: has no {names[wanted]!r}", "fill it in, or remove the row")
        converted = convert(cells, layout, config, place)
        if isinstance(converted, str):
            counts[converted] += 1
        elif any(is_empty(converted.get(part, ())) for part in ("messages", "chosen", "rejected", "completion")):
            empty.append(number)
        else:
            if purpose == "prompts":
                converted = {**converted, "item": _item(row)}
            found += _two(name, converted) if paired else [{"id": name, **converted}]
    if empty and config.empty == "refuse":
        listed = ", ".join(str(number + 1) for number in empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
        raise UserError(
            f"{table.name}: {len(empty)} of {len(rows)} rows have an empty completion (row {listed})",
            "remove or fill those rows, or leave them out with --set data.empty=drop",
        )
    if empty:
        counts["empty completion"] = len(empty)
    if not found:
        raise UserError(
            f"{table.name}: no row is left ({', '.join(f'{n} {why}' for why, n in sorted(counts.items()))})",
            "give a file with usable rows",
        )
    return Normalized(layout, found, dict(sorted(counts.items())))


def _with_ids(table: Table, rows: Sequence[Row], column: str) -> Iterator[tuple[int, str, Row]]:
    """(number, id, row); the id is the column's value, or the row's number. Raises `UserError` for one used twice."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        value = row.get(column)
        name = f"row-{number + 1}" if value is None or isinstance(value, dict | list) else str(value)
        if name in seen:
            raise UserError(
                f"{table.place(number)}: the id {name!r} is that of row {seen[name] + 1}",
                f"make the values of {column!r} unique, or rename that column so that rows are numbered",
            )
        seen[name] = number
        yield number, name, row


def _user(value: object, config: DataConfig, place: str) -> list[Message]:
    """A prompt as messages, put into the template when it is text, with the system turn before it."""
    messages = to_messages(value, "user", f"{place}, prompt")
    if isinstance(value, str):
        messages[0]["content"] = config.template.replace("{prompt}", value)
    return _with_system(messages, config)


def _with_system(messages: list[Message], config: DataConfig) -> list[Message]:
    if config.system and messages[0]["role"] != "system":
        return [{"role": "system", "content": config.system}, *messages]
    return messages


def _assistant(value: object, place: str) -> list[Message]:
    messages = to_messages(value, "assistant", place)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{place} ends with a turn of the {messages[-1]['role']}", "end it with one of the assistant")
    return messages


def _conversation(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    if "prompt" in layout:
        prompt = _user(cells["prompt"], config, place)
        return {"messages": [*prompt, *_assistant(cells["completion"], f"{place}, completion")], "given": len(prompt)}
    value = cells[layout[0]]
    if isinstance(value, str):
        value = split_transcript(value) or value
    messages = to_messages(value, "user", f"{place}, {layout[0]}")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return {"messages": _with_system(messages, config), "given": 0} if messages else "no assistant turn"


def _pair(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    first, second = layout[-2:]
    sides = []
    for name in (first, second):
        value = cells[name]
        if isinstance(value, str) and "prompt" not in layout:
            value = split_transcript(value)
            if value is None:
                raise UserError(
                    f"{place}: {name!r} is text without a prompt, and no transcript of Human: and Assistant: turns",
                    "add a column `prompt`, or name it with --columns prompt=...",
                )
        sides.append(_assistant(value, f"{place}, {name}"))
    chosen, rejected = sides
    if layout[0] == first:
        shared = shared_prompt(chosen, rejected)
        if shared is None:
            return "prompts differ"
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise UserError(f"{place}: the two sides share no prompt", "begin both with the same turns")
        prompt = _with_system(prompt, config)
    else:
        plain = to_messages(cells[layout[0]], "user", f"{place}, {layout[0]}")
        # Some files repeat the prompt at the head of both sides.
        chosen, rejected = (
            side[len(plain) :] if side[: len(plain)] == plain and len(side) > len(plain) else side
            for side in (chosen, rejected)
        )
        prompt = _user(cells[layout[0]], config, place)
    if chosen == rejected:
        return "both sides equal"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _two(name: str, pair: Row) -> list[Row]:
    """A pair as two labelled rows."""
    return [
        {"id": f"{name}/{side}", "prompt": pair["prompt"], "completion": pair[side], "label": label}
        for side, label in (("chosen", 1.0), ("rejected", 0.0))
    ]


TRUE, FALSE = {"true", "1", "yes", "good", "desirable"}, {"false", "0", "no", "bad", "undesirable", "-1"}


def _labelled(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    del layout
    prompt = _user(cells["prompt"], config, place)
    completion = _assistant(cells["completion"], f"{place}, completion")
    value = cells["label"]
    if isinstance(value, str):
        word = value.strip().lower()
        value = True if word in TRUE else False if word in FALSE else _number(word)
    if not isinstance(value, bool | int | float):
        raise UserError(f"{place}: the label is {cells['label']!r:.40}", "write true or false, or a number")
    return {"prompt": prompt, "completion": completion, "label": float(value)}


def _steps(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    steps, labels = cells[layout[1]], cells["labels"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise UserError(f"{place}: {layout[1]!r} is no list of texts", "write one text per step")
    if not isinstance(labels, list) or not all(isinstance(label, bool | int | float) for label in labels):
        raise UserError(f"{place}: 'labels' is no list of true and false", "write one label per step")
    if len(steps) != len(labels):
        raise UserError(f"{place}: {len(steps)} steps have {len(labels)} labels", "write one label per step")
    if not all(0 <= label <= 1 for label in labels):
        raise UserError(f"{place}: a label lies outside 0 to 1", "write true or false, or a share of right rollouts")
    if not steps or not all(step.strip() for step in steps):
        return "empty step"
    return {
        "prompt": _user(cells["prompt"], config, place),
        "steps": steps,
        "labels": [float(label) for label in labels],
    }


def _number(word: str) -> float | None:
    try:
        return float(json.loads(word))
    except (ValueError, TypeError):
        return None


def _prompt(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    if layout == ("prompt",):
        messages = _user(cells["prompt"], config, place)
    else:
        messages = _with_system(to_messages(cells["messages"], "user", f"{place}, messages"), config)
    reference: list[Message] = []
    while messages and messages[-1]["role"] == "assistant":
        reference.insert(0, messages.pop())
    if not messages:
        raise UserError(f"{place}: the prompt has no turn but the assistant's", "begin it with a user's turn")
    answer = cells.get("answer")
    if answer is None and reference:
        answer = reference[-1]["content"]
    if answer is None:
        return {"messages": messages, "answer": ""}
    return {"messages": messages, "answer": answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)}


def _item(row: Row) -> Row:
    """What graders see of a row beside its prompt: every column that has a value."""
    return {name: value for name, value in row.items() if value is not None}
