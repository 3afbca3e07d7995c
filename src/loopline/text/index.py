"""An index of items, such as held-out tasks, that finds them in texts by the million.

    index = TextIndex([("gsm8k-7", "Janet has ...")])
    index.find(documents)                                # [Match(text, item, start, end, whole), ...]

Long items are found by any run of 13 shared words. Items too short for that are found whole: as a sequence of words and
punctuation (so `12+5-3` is not `12-5+3`), and from eight words on as a sequence of words alone. For a few short texts
see `text.overlap`. Not covered: paraphrases and translations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loopline.text.kernel import Shard, Spans, batches, mix, ngrams, powers
from loopline.text.words import EDGE

ANCHOR = 5
WORDS_ALONE = 8
_EDGE_MARKS = frozenset(EDGE.strip().encode())
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
        """(length, positions, owners) of the items that occur in a sequence of hashes."""
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


class TextIndex:
    """Items ready to be searched for: (id, text) pairs."""

    def __init__(
        self, items: Sequence[tuple[str, str]], ngram: int = 13, shortest: int = 5, whole: bool = True
    ) -> None:
        """Items longer than `ngram` words are found by a run of so many, others from `shortest` symbols on as a whole.

        `whole=False` leaves out the search for whole items, for items that are documents.
        """
        self.ngram = ngram
        self.ids = [name for name, _ in items]
        texts = [text for _, text in items]
        shard = Shard(texts, fold=True)
        terms = shard.terms()
        term_hashes = shard.hash(terms)
        keys, position = ngrams(term_hashes, terms.document, ngram)
        self._ngrams = _Table(keys, terms.document[position])
        symbols = shard.symbols()
        symbol_hashes = shard.hash(symbols)
        solid = ~np.isin(shard.raw[symbols.start], list(_EDGE_MARKS)) | (symbols.length > 1)
        symbol_items, term_items = [], []
        for owner in range(len(texts) if whole else 0):
            low, high = np.searchsorted(symbols.document, (owner, owner + 1))
            inner = low + np.flatnonzero(solid[low:high])
            if len(inner) and inner[-1] - inner[0] + 1 >= shortest:
                symbol_items.append((owner, symbol_hashes[inner[0] : inner[-1] + 1]))
            low, high = np.searchsorted(terms.document, (owner, owner + 1))
            if high - low >= WORDS_ALONE:
                term_items.append((owner, term_hashes[low:high]))
        self._symbols = _Sequences(symbol_items, min(ANCHOR, shortest))
        self._terms = _Sequences(term_items, ANCHOR)

    def find(self, texts: Sequence[str], whole_only: bool = False) -> list[Match]:
        """Every match in the texts, ordered by text and position. `whole_only` leaves shared runs of words out."""
        found: set[Match] = set()
        for batch in batches([len(text) for text in texts]):
            shard = Shard([texts[i] for i in batch], fold=True)
            terms = shard.terms()
            hashes = shard.hash(terms)
            if not whole_only:
                keys, position = ngrams(hashes, terms.document, self.ngram)
                hit, owner = self._ngrams.find(keys)
                self._note(found, shard, terms, batch.start, self.ngram, position[hit], owner, False)
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
        """Share of each text's n-grams that occur in the items; shape (len(texts),); 0 for a text too short for one."""
        shares = [np.zeros(0)]
        for batch in batches([len(text) for text in texts]):
            shard = Shard([texts[i] for i in batch], fold=True)
            terms = shard.terms()
            keys, position = ngrams(shard.hash(terms), terms.document, self.ngram)
            hit, _ = self._ngrams.find(keys)
            document = terms.document[position]
            total = np.bincount(document, minlength=shard.count)
            shares.append(np.bincount(document[hit], minlength=shard.count) / np.maximum(total, 1))
        return np.concatenate(shares)
