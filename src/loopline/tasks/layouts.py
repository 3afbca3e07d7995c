"""Layouts of data files, and what each becomes.

    found = normalize(table, "pairs", config)          # Normalized(layout, rows, counts, unused)

| for | columns |
|---|---|
| conversations (sft) | `messages`, or `conversations`, or `prompt` and `completion` |
| pairs (preference, reward) | `prompt`, `chosen`, `rejected`; `chosen` and `rejected` alone, as messages or transcripts; or OpenAI's `input`, `preferred_output`, `non_preferred_output` |
| labels (preference with loss kto, reward with loss pointwise) | `prompt`, `completion`, `label`; or pairs, each of which makes two |
| steps (reward with loss process) | `prompt`, `steps` (a list of texts), `labels` (a list of true/false) |
| prompts (task sets) | `prompt` or `messages`; every column is `item.<column>` to graders, `answer` is the reference |

Beside these a file may have `id`, `system` (a system turn), `tools` (schemas that the template declares) and, beside a
prompt in text, `input` (put below it, as in Alpaca's files). Other names are mapped by `columns`. Mistakes are refused
with the row they are in, and so is a column that looks like part of the conversation but is not read. Not covered:
several files at once.
"""  # noqa: E501

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loopline.base.errors import UserError
from loopline.tasks.config import DataConfig
from loopline.tasks.files import Row, Table, loads
from loopline.tasks.messages import is_empty, listed, shared_prompt, split_transcript, to_messages
from loopline.tasks.rows import Message

Purpose = Literal["conversations", "pairs", "labels", "steps", "prompts"]
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
OPTIONAL: dict[str, tuple[str, ...]] = {
    "conversations": ("id", "system", "tools", "input", "given"),
    "pairs": ("id", "system", "tools", "input"),
    "labels": ("id", "system", "tools", "input"),
    "steps": ("id", "system", "tools", "input"),
    "prompts": ("id", "system", "tools", "input", "answer"),
}
"""What else is read where it is there; `given` is how many leading messages carry no loss."""
MISSED = {"input": ("context", "passage"), "system": ("system_prompt",), "tools": ("functions",), "history": ()}
"""Columns that are part of a conversation: one of these that nothing reads is refused, and offered as the key."""
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
    """Of the type in `tasks.rows` that the purpose names."""
    counts: dict[str, int]
    """Rows left out, by reason."""
    unused: tuple[str, ...] = ()
    """Columns of the file that nothing reads."""


def check_columns(table: Table, purpose: Purpose, columns: Mapping[str, str]) -> tuple[str, ...]:
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
        f"{table.name} has the columns {', '.join(table.columns)}, but {purpose} are read from {wanted}",
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
            # What is beside the prompt belongs to it.
            for wanted in ("input", "system", "tools") if "prompt" in layout else ():
                match = next((name for name in (wanted, *MISSED[wanted]) if name in free), None)
                if match is not None and wanted not in found:
                    found[wanted] = match
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


def normalize(table: Table, purpose: Purpose, config: DataConfig | None = None) -> Normalized:
    """The rows in the form that training reads. Raises `UserError` for columns, ids and rows that cannot be used."""
    config = config or DataConfig()
    layout = check_columns(table, purpose, config.columns)
    rows = table.rows if config.limit is None else table.rows[: config.limit]
    names = {wanted: config.columns.get(wanted, wanted) for wanted in (*layout, *OPTIONAL[purpose])}
    unused = tuple(name for name in table.columns if name not in names.values()) if purpose != "prompts" else ()
    _refuse_missed(table, layout, rows, [name for name in unused if name not in config.ignore])
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
        cells = {wanted: row.get(given) for wanted, given in names.items() if given not in config.ignore}
        for wanted in layout:
            if cells.get(wanted) is None:
                raise UserError(f"{place}: has no {names[wanted]!r}", "fill it in, or remove the row")
        if "input" in layout:
            cells["prompt"] = cells.pop("input")
        converted = convert(cells, layout, config, place)
        if isinstance(converted, str):
            counts[converted] += 1
        elif any(is_empty(_learned(converted, part)) for part in ("messages", "chosen", "rejected", "completion")):
            empty.append(number)
        else:
            if purpose == "prompts":
                converted["item"] = _item(row)
            if cells.get("tools"):
                converted["tools"] = _tools(cells["tools"], place)
            found += _two(name, converted) if paired else [{"id": name, **converted}]
    if empty and config.empty == "refuse":
        where = ", ".join(str(number + 1) for number in empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
        raise UserError(
            f"{table.name}: {len(empty)} of {len(rows)} rows have an empty completion (row {where})",
            "remove or fill those rows, or leave them out with `empty: drop` (--set read.empty=drop)",
        )
    if empty:
        counts["empty completion"] = len(empty)
    if not found:
        raise UserError(
            f"{table.name}: no row is left ({', '.join(f'{n} {why}' for why, n in sorted(counts.items()))})",
            "give a file with usable rows",
        )
    return Normalized(layout, found, dict(sorted(counts.items())), unused)


def _learned(row: Row, part: str) -> Sequence[Row]:
    """The turns of a part that training learns from: what was said before was given, and may be empty as it was."""
    turns: Sequence[Row] = row.get(part, ())
    return turns[row.get("given", 0) :] if part == "messages" else turns


def _refuse_missed(table: Table, layout: tuple[str, ...], rows: Sequence[Row], unused: Sequence[str]) -> None:
    """Raise `UserError` for an unused column that is part of the conversation and not empty."""
    for wanted, names in MISSED.items():
        if wanted == "input" and "prompt" not in layout:
            continue
        for name in unused:
            if name.lower() in (wanted, *names) and any(row.get(name) for row in rows):
                use = f"read it with --columns {wanted}={name}, or " if wanted != "history" else ""
                raise UserError(
                    f"{table.name}: the column {name!r} looks like part of the conversation, but nothing reads it",
                    f"{use}leave it out with `ignore: [{name}]` (--set read.ignore=[{name}])",
                )


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


def _user(cells: Row, config: DataConfig, place: str) -> list[Message]:
    """A prompt as messages, put into the template when it is text, with the system turn before it."""
    value, below = cells["prompt"], cells.get("input")
    messages = to_messages(value, "user", f"{place}, prompt")
    if below:
        if not isinstance(value, str) or not isinstance(below, str):
            raise UserError(f"{place}: has an input beside a prompt that is no text", "put both into messages")
        value = f"{value}\n\n{below}"
    if isinstance(value, str) and len(messages) == 1:
        messages[0]["content"] = config.template.replace("{prompt}", value)
    return _with_system(messages, cells, config, place)


def _with_system(messages: list[Message], cells: Row, config: DataConfig, place: str) -> list[Message]:
    own = cells.get("system")
    if own and not isinstance(own, str):
        raise UserError(f"{place}: the system turn is {own!r:.40}", "write it as text")
    if own and messages[0]["role"] == "system" and messages[0]["content"] != own:
        raise UserError(f"{place}: has two system turns", "leave one of them out")
    if (own or config.system) and messages[0]["role"] != "system":
        return [{"role": "system", "content": own or config.system}, *messages]
    return messages


def _assistant(value: object, place: str) -> list[Message]:
    messages = to_messages(value, "assistant", place)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{place} ends with a turn of the {messages[-1]['role']}", "end it with one of the assistant")
    return messages


def _tools(value: object, place: str) -> list[dict[str, Any]]:
    """Tool schemas in OpenAI's form."""
    value = _json(value)
    items = value if isinstance(value, list) else []
    bare = [item["function"] if isinstance(item, dict) and "function" in item else item for item in items]
    if not bare or not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in bare):
        raise UserError(f"{place}: the tools are no list of schemas", 'write [{"type": "function", "function": {...}}]')
    return [{"type": "function", "function": item} for item in bare]


def _json(value: object) -> object:
    """What a text holds as JSON, the only way a CSV file can hold a list; any other value as it is."""
    try:
        return loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _conversation(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    if "prompt" in layout:
        prompt = _user(cells, config, place)
        return {"messages": [*prompt, *_assistant(cells["completion"], f"{place}, completion")], "given": len(prompt)}
    value = cells[layout[0]]
    if isinstance(value, str):
        value = split_transcript(value) or listed(value)
        if value is None:
            raise UserError(f"{place}: {layout[0]!r} is text, no list of messages", "write a list of messages")
    messages = to_messages(value, "user", f"{place}, {layout[0]}")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        return "no assistant turn"
    given = int(cells.get("given") or 0)
    whole = _with_system(messages, cells, config, place)
    if not any(item["role"] == "assistant" and item.get("weight") != 0 for item in messages[given:]):
        return "nothing to learn"
    return {"messages": whole, "given": given + len(whole) - len(messages) if given else 0}


def _pair(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    first, second = layout[-2:]
    sides = []
    for name in (first, second):
        value = cells[name]
        if isinstance(value, str) and len(layout) == 2:
            value = split_transcript(value) or listed(value)
            if value is None:
                raise UserError(
                    f"{place}: {name!r} is text without a prompt, and no transcript of Human: and Assistant: turns",
                    "add a column `prompt`, or name it with --columns prompt=...",
                )
        sides.append(_assistant(value, f"{place}, {name}"))
    chosen, rejected = sides
    if len(layout) == 2:
        shared = shared_prompt(chosen, rejected)
        if shared is None:
            return "prompts differ"
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise UserError(f"{place}: the two sides share no prompt", "begin both with the same turns")
        prompt = _with_system(prompt, cells, config, place)
    else:
        plain = to_messages(cells["prompt"], "user", f"{place}, {layout[0]}")
        chosen, rejected = (_without_prompt(side, plain, place) for side in (chosen, rejected))
        prompt = _user(cells, config, place)
    if chosen == rejected:
        return "both sides equal"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _without_prompt(side: list[Message], prompt: Sequence[Message], place: str) -> list[Message]:
    """A side without the prompt, which some files repeat at the head of both; spaces around it do not count."""

    def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
        return [(item["role"], item["content"].strip()) for item in messages]

    if len(side) > len(prompt) and said(side[: len(prompt)]) == said(prompt):
        side = side[len(prompt) :]
    if side[0]["role"] not in ("assistant", "tool"):
        raise UserError(
            f"{place}: a side begins with a turn of the {side[0]['role']} that is not the prompt",
            "begin both sides with the assistant's answer, or leave the column `prompt` out",
        )
    return side


def _two(name: str, pair: Row) -> list[Row]:
    """A pair as two labelled rows."""
    return [
        {
            "id": f"{name}/{side}",
            "prompt": pair["prompt"],
            "completion": pair[side],
            "label": label,
            **({"tools": pair["tools"]} if "tools" in pair else {}),
        }
        for side, label in (("chosen", 1.0), ("rejected", 0.0))
    ]


TRUE, FALSE = {"true", "1", "yes", "good", "desirable"}, {"false", "0", "no", "bad", "undesirable", "-1"}


def _labelled(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    del layout
    prompt = _user(cells, config, place)
    completion = _assistant(cells["completion"], f"{place}, completion")
    value = cells["label"]
    if isinstance(value, str):
        word = value.strip().lower()
        value = True if word in TRUE else False if word in FALSE else _number(word)
    if not isinstance(value, bool | int | float):
        raise UserError(f"{place}: the label is {cells['label']!r:.40}", "write true or false, or a number")
    return {"prompt": prompt, "completion": completion, "label": float(value)}


def _steps(cells: Row, layout: tuple[str, ...], config: DataConfig, place: str) -> Row | str:
    steps, labels = _json(cells[layout[1]]), _json(cells["labels"])
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
        "prompt": _user(cells, config, place),
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
        messages = _user(cells, config, place)
    else:
        messages = to_messages(cells["messages"], "user", f"{place}, messages")
        messages = _with_system(messages, cells, config, place)
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
