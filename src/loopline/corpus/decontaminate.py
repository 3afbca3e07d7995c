"""Decontamination: held-out tasks are found in training text and cut out, whatever their case or spacing.

Use: `index = heldout_index(tasks_dir, config)`, then `step(documents, index, config)`; `text.index` says
what is found. Natural text loses the match and its surroundings, a generated document the paragraph or line that holds
it. Generated text shares templates with held-out items by design, so there only whole items count.

Not covered: paraphrases and translations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.corpus.config import DecontaminationConfig
from loopline.corpus.document import Document
from loopline.corpus.funnel import Change
from loopline.text.index import TextIndex


def heldout_index(tasks_dir: Path, config: DecontaminationConfig) -> TextIndex:
    """The index of a tasks artifact: prompts, programs, facts and documents of the parts that are not for training.

    Raises `UserError` when there are none.
    """
    items: list[tuple[str, str]] = []
    for part in ("heldout", "dev"):
        if (tasks_dir / f"{part}.jsonl").exists() or part == "heldout":
            for row in read_jsonl(tasks_dir / f"{part}.jsonl"):
                items += task_items(row)
    path = tasks_dir / "documents.jsonl"
    if path.exists():
        items += [(row["id"], row["text"]) for row in read_jsonl(path) if row.get("part") != "train"]
    if not items:
        raise UserError(f"{tasks_dir} holds no held-out tasks", "give the tasks stage a held-out set")
    return TextIndex(items, config.ngram, config.shortest)


def task_items(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The texts of one held-out task that must not be trained on."""
    items = [(row["id"], message["content"]) for message in row["messages"] if message["role"] == "user"]
    fields = {**row.get("item", {}), **row}
    # Answers of other tasks ("14", a refusal) are common property; a program is not.
    if "tests" in fields and isinstance(row.get("answer"), str):
        items.append((row["id"], row["answer"]))
    facts = fields.get("facts", [])
    items += [(row["id"], fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True)) for fact in facts]
    return items


def step(documents: Sequence[Document], index: TextIndex, config: DecontaminationConfig) -> Change:
    """Cut held-out items out: from natural text with a margin, from generated documents with their whole block."""
    change = Change()
    for made in (False, True):
        numbers = [n for n, document in enumerate(documents) if (document.lane == "synthetic") == made]
        ranges: dict[int, list[tuple[int, int]]] = {}
        for match in index.find([documents[number].text for number in numbers], whole_only=made):
            ranges.setdefault(numbers[match.text], []).append((match.start, match.end))
        for number, found in ranges.items():
            content = documents[number].text.encode("utf-8")
            widened = [_block(content, *span) if made else _widened(content, *span, config.margin) for span in found]
            _cut(change, documents, number, widened, config.max_cut)
    return change


def _cut(
    change: Change, documents: Sequence[Document], number: int, spans: list[tuple[int, int]], max_cut: float
) -> None:
    content = documents[number].text.encode("utf-8")
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    kept, position = bytearray(), 0
    for start, end in merged:
        kept += content[position:start]
        position = end
    text = (kept + content[position:]).decode("utf-8").strip("\n")
    if sum(end - start for start, end in merged) > max_cut * len(content) or not text.strip():
        change.removed[number] = "mostly held-out tasks"
        return
    change.cut += [(number, "held-out task", content[start:end].decode("utf-8")) for start, end in merged]
    change.edited[number] = documents[number].with_text(text)


def _block(content: bytes, start: int, end: int) -> tuple[int, int]:
    """A match widened to its paragraph, or to its lines in a document of one paragraph, separator included."""
    mark = b"\n\n" if b"\n\n" in content else b"\n"
    first = content.rfind(mark, 0, start)
    last = content.find(mark, end)
    return (0 if first < 0 else first + len(mark)), (len(content) if last < 0 else last + len(mark))


def _widened(content: bytes, start: int, end: int, margin: int) -> tuple[int, int]:
    """A match widened by `margin` bytes and then to the nearest spaces, so that no word or character is cut."""
    spaces = (32, 10, 9)
    start, end = max(0, start - margin), min(len(content), end + margin)
    while start > 0 and content[start - 1] not in spaces:
        start -= 1
    while end < len(content) and content[end] not in spaces:
        end += 1
    return start, end
