"""The byte kernel: many documents as one byte array, and tables of their words, lines, paragraphs and n-grams.

Use: `shard = Shard(texts)`, then `shard.words()`, `shard.lines()`, `shard.hash(spans)`, `ngrams(...)`. One prefix sum
`C[i] = sum (b_j + 1) * P^j (mod 2^64)` over the case-folded bytes makes the hash of any span two look-ups:
`(C[end] - C[start]) * P^-start`. No Python loop runs per character, word or line; the rest of the funnel is built on
these tables. `batches` cuts a corpus into pieces that stay in cache.

Not covered: segmentation of scripts without spaces (a run of such characters is one word).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

U = np.uint64
_P = 0x9E3779B97F4A7C15
_P_INVERSE = pow(_P, -1, 2**64)
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[65:91] += 32
SPACE = np.zeros(256, dtype=bool)
SPACE[[9, 10, 11, 12, 13, 32]] = True
WORD = np.zeros(256, dtype=bool)
WORD[48:58] = WORD[65:91] = WORD[97:123] = WORD[128:] = True
WORD[95] = True
ALPHA = np.zeros(256, dtype=bool)
ALPHA[65:91] = ALPHA[97:123] = ALPHA[128:] = True
DIGIT = np.zeros(256, dtype=bool)
DIGIT[48:58] = True
_SEPARATOR = b"\n\n\n"
_powers: tuple[np.ndarray, np.ndarray] = (np.ones(1, U), np.ones(1, U))


def powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """P^0..P^(size-1) and their inverses modulo 2^64, kept between calls."""
    global _powers
    if len(_powers[0]) < size:
        grown = []
        for base in (_P, _P_INVERSE):
            values = np.full(size, base, dtype=U)
            values[0] = 1
            grown.append(np.multiply.accumulate(values))
        _powers = (grown[0], grown[1])
    return _powers[0][:size], _powers[1][:size]


def mix(values: np.ndarray) -> np.ndarray:
    """Spread the bits of 64-bit hashes (finalizer of MurmurHash3); a new array."""
    values = values ^ (values >> U(33))
    values = values * U(0xFF51AFD7ED558CCD)
    values ^= values >> U(33)
    values = values * U(0xC4CEB9FE1A85EC53)
    values ^= values >> U(33)
    return values


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the runs of True in a 1-d mask."""
    edges = np.flatnonzero(np.diff(mask.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    return edges[::2], edges[1::2]


@dataclass(frozen=True)
class Spans:
    """Byte ranges [start, end) of a shard and the number of the document each lies in."""

    start: np.ndarray
    end: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def length(self) -> np.ndarray:
        """Bytes of each span."""
        length: np.ndarray = self.end - self.start
        return length


class Shard:
    """Documents joined into one byte array with three newlines between them.

    `fold` lower-cases beyond ASCII too, for documents whose UTF-8 length that does not change; hashes always ignore
    ASCII case.
    """

    def __init__(self, texts: Sequence[str], fold: bool = False) -> None:
        pieces = [text.encode("utf-8") for text in texts]
        if fold:
            pieces = [_folded(text, piece) for text, piece in zip(texts, pieces, strict=True)]
        self.count = len(pieces)
        self.raw = np.frombuffer(_SEPARATOR.join(pieces) + b"\n", dtype=np.uint8)
        self.size = np.fromiter((len(piece) for piece in pieces), dtype=np.int64, count=self.count)
        ends = np.cumsum(self.size + len(_SEPARATOR))
        self.start = ends - self.size - len(_SEPARATOR)
        self.end = self.start + self.size
        self._prefix: np.ndarray | None = None

    def spans(self, start: np.ndarray, end: np.ndarray) -> Spans:
        """Spans with their documents looked up."""
        return Spans(start, end, np.searchsorted(self.start, start, side="right") - 1)

    def words(self) -> Spans:
        """Runs of non-space bytes: the words of Gopher's rules."""
        return self.spans(*runs(~SPACE[self.raw]))

    def terms(self) -> Spans:
        """Runs of letters, digits and underscores: the words of shingles and n-grams."""
        return self.spans(*runs(WORD[self.raw]))

    def symbols(self) -> Spans:
        """Terms, and every other byte that is no space as a span of its own."""
        word = WORD[self.raw]
        start, end = runs(word)
        single = np.flatnonzero(~word & ~SPACE[self.raw])
        starts = np.concatenate((start, single))
        order = np.argsort(starts, kind="stable")
        return self.spans(starts[order], np.concatenate((end, single + 1))[order])

    def lines(self) -> Spans:
        """Runs without a newline, empty lines left out."""
        return self.spans(*runs(self.raw != 10))

    def paragraphs(self) -> Spans:
        """Blocks between empty lines."""
        newline = self.raw == 10
        after = np.append(newline[1:], True)
        before = np.concatenate(([True], newline[:-1]))
        return self.spans(*runs(~(newline & (after | before))))

    def hash(self, spans: Spans) -> np.ndarray:
        """64-bit hash of each span's bytes, ASCII case ignored; equal text gives equal hashes in every shard."""
        forward, backward = powers(len(self.raw) + 1)
        if self._prefix is None:
            self._prefix = np.zeros(len(self.raw) + 1, dtype=U)
            np.cumsum((_LOWER[self.raw].astype(U) + U(1)) * forward[: len(self.raw)], out=self._prefix[1:])
        return mix((self._prefix[spans.end] - self._prefix[spans.start]) * backward[spans.start])

    def total(self, spans: Spans, values: np.ndarray | None = None) -> np.ndarray:
        """Count of spans, or sum of `values`, per document; shape (count,)."""
        return np.bincount(spans.document, weights=values, minlength=self.count)

    def share(self, table: np.ndarray, spans: Spans) -> np.ndarray:
        """How many bytes of each span are in a 256-entry class `table`."""
        prefix = np.zeros(len(self.raw) + 1, dtype=np.int64)
        np.cumsum(table[self.raw], out=prefix[1:])
        inside: np.ndarray = prefix[spans.end] - prefix[spans.start]
        return inside

    def within(self, table: np.ndarray) -> np.ndarray:
        """How many bytes of each document are in a class `table`; shape (count,)."""
        return self.share(table, Spans(self.start, self.end, np.arange(self.count)))


def _folded(text: str, encoded: bytes) -> bytes:
    if text.isascii():
        return encoded
    lower = text.lower().encode("utf-8")
    return lower if len(lower) == len(encoded) else encoded


def hash_text(text: str) -> int:
    """The hash `Shard.hash` gives a span with this text."""
    shard = Shard([text])
    return int(shard.hash(Spans(shard.start, shard.end, np.zeros(1, np.int64)))[0])


def ngrams(hashes: np.ndarray, document: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all n-grams that stay inside one document, and the index of each one's first term."""
    if len(hashes) < n:
        return np.zeros(0, U), np.zeros(0, np.int64)
    keys = hashes[: len(hashes) - n + 1].copy()
    for offset in range(1, n):
        keys *= U(_P)
        keys += hashes[offset : len(hashes) - n + 1 + offset]
    position = np.flatnonzero(document[: len(keys)] == document[n - 1 :])
    return mix(keys[position]), position


def repeats(keys: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Mask of keys seen before in the same document, in order of appearance."""
    salted = keys ^ mix(document.astype(U) + U(_P))
    order = np.argsort(salted, kind="stable")
    again = np.zeros(len(keys), dtype=bool)
    again[order[1:]] = salted[order[1:]] == salted[order[:-1]]
    return again


def batches(sizes: Sequence[int], target: int = 1_000_000) -> Iterator[range]:
    """Ranges of consecutive documents of about `target` bytes each."""
    start = total = 0
    for index, size in enumerate(sizes):
        total += size
        if total >= target:
            yield range(start, index + 1)
            start, total = index + 1, 0
    if start < len(sizes):
        yield range(start, len(sizes))
