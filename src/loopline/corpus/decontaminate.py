"""Decontamination: held-out tasks are found in training text and cut out, whatever their case or spacing.

Use: `index = HeldoutIndex.from_tasks(tasks_dir, config)`, then `index.find(texts)` or `step(documents, index, config)`.
Long items are found by any run of 13 shared words. Items too short for that are found whole: as a sequence of words and
marks (so `12+5-3` is not `12-5+3`), and from eight words on as a sequence of words alone. Natural text loses the match
and its surroundings, a generated document the paragraph or line that holds it. Generated text shares templates with
held-out items by design, so there only whole items count.

Not covered: paraphrases and translations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.corpus.config import DecontaminationConfig
from loopline.corpus.document import Document
from loopline.corpus.funnel import Change
from loopline.corpus.kernel import Shard, Spans, batches, mix, ngrams, powers

ANCHOR = 5
WORDS_ALONE = 8
_EDGE_MARKS = frozenset(b"?!.,:;=\"'`")
_EDGE_TEXT = "?!.,:;=\"'` "
_OPERATORS = frozenset(b"+-*/^%.")


@dataclass(frozen=True)
class Match:
    """Item `item` found in text `text` at bytes [start, end); `whole` when all of it was there."""

    text: int
    item: str
    start: int
    end: int
    whole: bool


class _Table:
    """A set of 64-bit hashes with an owner each; a bitmap answers most look-ups before the sorted array does."""

    def __init__(self, keys: np.ndarray, owner: np.ndarray) -> None:
        self.keys, index = np.unique(keys, return_index=True)
        self.owner = owner[index]
        self._bits = np.zeros(1 << 20, dtype=bool)
        self._bits[self.keys >> np.uint64(44)] = True

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `keys` that are in the set, and their owners."""
        maybe = np.flatnonzero(self._bits[keys >> np.uint64(44)])
        if not len(self.keys) or not len(maybe):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(self.keys, keys[maybe]), len(self.keys) - 1)
        hit = self.keys[place] == keys[maybe]
        return maybe[hit], self.owner[place[hit]]


class _Sequences:
    """Whole items as sequences of hashes: an anchor of the first hashes, then one comparison of the whole."""

    def __init__(self, items: list[tuple[int, np.ndarray]], anchor: int) -> None:
        self.anchor = anchor
        by_length: dict[int, list[tuple[int, int]]] = {}
        anchors = []
        for owner, hashes in items:
            by_length.setdefault(len(hashes), []).append((owner, int(_whole(hashes, np.zeros(1, int), len(hashes))[0])))
            anchors.append(int(_whole(hashes, np.zeros(1, int), anchor)[0]))
        self._anchors = _Table(np.array(anchors, dtype=np.uint64), np.zeros(len(anchors), dtype=np.int64))
        self._tables = [
            (length, _Table(np.array([key for _, key in rows], np.uint64), np.array([owner for owner, _ in rows])))
            for length, rows in sorted(by_length.items())
        ]

    def find(self, hashes: np.ndarray) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        """(length, positions, owners) of the items that stand in a sequence of hashes."""
        if len(hashes) < self.anchor:
            return
        starts = np.arange(len(hashes) - self.anchor + 1)
        starts = starts[self._anchors.find(_whole(hashes, starts, self.anchor))[0]]
        for length, table in self._tables:
            fitting = starts[starts + length <= len(hashes)]
            hit, owner = table.find(_whole(hashes, fitting, length))
            if len(hit):
                yield length, fitting[hit], owner


def _continues_sum(raw: np.ndarray, start: int) -> bool:
    """Whether a number at `start` follows an operator: `12+5-3` inside `7+12+5-3` is another problem."""
    return start > 0 and 48 <= raw[start] <= 57 and int(raw[start - 1]) in _OPERATORS


def _whole(hashes: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Hash of the run of `length` hashes at each start; the same in every sequence that holds the run."""
    forward, backward = powers(len(hashes) + 1)
    prefix = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * forward[: len(hashes)], out=prefix[1:])
    return mix((prefix[starts + length] - prefix[starts]) * backward[starts])


class HeldoutIndex:
    """Held-out items ready to be searched for: (id, text) pairs."""

    def __init__(self, items: Sequence[tuple[str, str]], config: DecontaminationConfig, whole: bool = True) -> None:
        """`whole=False` leaves out the search for whole items, for items that are documents."""
        self.config = config
        self.ids = [name for name, _ in items]
        texts = [text for _, text in items]
        shard = Shard(texts, fold=True)
        terms = shard.terms()
        term_hashes = shard.hash(terms)
        keys, position = ngrams(term_hashes, terms.document, config.ngram)
        self._ngrams = _Table(keys, terms.document[position])
        symbols = shard.symbols()
        symbol_hashes = shard.hash(symbols)
        solid = ~np.isin(shard.raw[symbols.start], list(_EDGE_MARKS)) | (symbols.length > 1)
        symbol_items, term_items = [], []
        for owner in range(len(texts) if whole else 0):
            low, high = np.searchsorted(symbols.document, (owner, owner + 1))
            inner = low + np.flatnonzero(solid[low:high])
            if len(inner) and inner[-1] - inner[0] + 1 >= config.shortest:
                symbol_items.append((owner, symbol_hashes[inner[0] : inner[-1] + 1]))
            low, high = np.searchsorted(terms.document, (owner, owner + 1))
            if high - low >= WORDS_ALONE:
                term_items.append((owner, term_hashes[low:high]))
        self._symbols = _Sequences(symbol_items, min(ANCHOR, config.shortest))
        self._terms = _Sequences(term_items, ANCHOR)

    @classmethod
    def from_tasks(cls, tasks_dir: Path, config: DecontaminationConfig) -> HeldoutIndex:
        """The index of a tasks artifact: prompts, code solutions, looked-up facts
        and their documents of the held-out and the dev part."""
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
        return cls(items, config)

    def find(self, texts: Sequence[str], whole_only: bool = False) -> list[Match]:
        """Every match in the texts, ordered by text and position. `whole_only` leaves shared runs of words out."""
        found: set[Match] = set()
        for batch in batches([len(text) for text in texts]):
            shard = Shard([texts[i] for i in batch], fold=True)
            terms = shard.terms()
            hashes = shard.hash(terms)
            if not whole_only:
                keys, position = ngrams(hashes, terms.document, self.config.ngram)
                hit, owner = self._ngrams.find(keys)
                self._note(found, shard, terms, batch.start, self.config.ngram, position[hit], owner, False)
            for length, start, owner in self._terms.find(hashes):
                self._note(found, shard, terms, batch.start, length, start, owner, True)
            symbols = shard.symbols()
            for length, start, owner in self._symbols.find(shard.hash(symbols)):
                self._note(found, shard, symbols, batch.start, length, start, owner, True)
        return sorted(found, key=lambda match: (match.text, match.start, match.end, match.item, match.whole))

    def _note(
        self, found: set[Match], shard: Shard, spans: Spans, first: int, length: int,
        starts: np.ndarray, owners: np.ndarray, whole: bool,
    ) -> None:  # fmt: skip
        for start, owner in zip(starts.tolist(), owners.tolist(), strict=True):
            document, last = int(spans.document[start]), start + length - 1
            if spans.document[last] == document and not _continues_sum(shard.raw, int(spans.start[start])):
                origin = int(shard.start[document])
                begin, end = int(spans.start[start]) - origin, int(spans.end[last]) - origin
                found.add(Match(first + document, self.ids[owner], begin, end, whole))

    def overlap(self, texts: Sequence[str]) -> np.ndarray:
        """Share of each text's n-grams that stand in the items; shape (len(texts),); 0 for a text too short for one."""
        shares = [np.zeros(0)]
        for batch in batches([len(text) for text in texts]):
            shard = Shard([texts[i] for i in batch], fold=True)
            terms = shard.terms()
            keys, position = ngrams(shard.hash(terms), terms.document, self.config.ngram)
            hit, _ = self._ngrams.find(keys)
            document = terms.document[position]
            total = np.bincount(document, minlength=shard.count)
            shares.append(np.bincount(document[hit], minlength=shard.count) / np.maximum(total, 1))
        return np.concatenate(shares)


def task_items(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The texts of one held-out task that must not be trained on."""
    items = [(row["id"], message["content"]) for message in row["messages"] if message["role"] == "user"]
    # Answers of other task sets ("14", a refusal) are common property; a program is not.
    if row.get("grader") == "code_tests" and isinstance(row.get("answer"), str):
        items.append((row["id"], row["answer"]))
    facts = row.get("facts", [])
    items += [(row["id"], fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True)) for fact in facts]
    return items


def step(documents: Sequence[Document], index: HeldoutIndex, config: DecontaminationConfig) -> Change:
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
