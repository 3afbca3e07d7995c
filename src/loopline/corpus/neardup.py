"""Near duplicates: MinHash signatures by one-permutation hashing, banded look-up, verification, clusters.

Use: `signatures(texts)` gives (n, 112) values; `clusters(signatures, similarity)` the cluster of each text;
`step(documents, config)` keeps the best copy of each cluster. Every candidate pair is verified by the agreement of its
signatures, so a chance meeting in one band removes nothing.

One hash per shingle fills 112 bins with minima (Li, Owen, Zhang 2012); empty bins borrow from filled ones by a fixed
sequence of hashes ("optimal densification", Shrivastava 2017). 14 bands of 8 find a pair of similarity s with
probability 1 - (1 - s^8)^14: 0.92 at 0.8. Not covered: synthetic documents, which repeat their templates on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loopline.corpus.config import DedupConfig
from loopline.corpus.document import Document
from loopline.corpus.funnel import Change
from loopline.text.kernel import Shard, batches, mix, ngrams

BINS = 112
_EMPTY = np.uint64(2**32)


def shingles(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of `n` terms, case ignored, and the number of the text each is from."""
    shard = Shard(texts, fold=True)
    terms = shard.terms()
    keys, position = ngrams(shard.hash(terms), terms.document, n)
    return keys, terms.document[position]


def signatures(texts: Sequence[str], n: int = 5) -> np.ndarray:
    """MinHash signatures, uint64 of shape (len(texts), BINS); a text of fewer than `n` terms has 2^32 in every bin.

    The share of equal bins of two rows estimates the Jaccard similarity of their shingle sets.
    """
    parts = [np.zeros((0, BINS), dtype=np.uint64)]
    for batch in batches([len(text) for text in texts]):
        keys, document = shingles([texts[i] for i in batch], n)
        table = np.full(len(batch) * BINS, _EMPTY, dtype=np.uint64)
        bins = ((keys >> np.uint64(32)) % np.uint64(BINS)).astype(np.int64)
        np.minimum.at(table, document * BINS + bins, keys & np.uint64(0xFFFFFFFF))
        parts.append(_densify(table.reshape(len(batch), BINS)))
    return np.concatenate(parts)


def _densify(table: np.ndarray) -> np.ndarray:
    """Fill each empty bin from the first filled bin of a sequence that depends on the bin alone."""
    filled = table != _EMPTY
    some = filled.any(axis=1)
    out = table.copy()
    missing = ~filled & some[:, None]
    attempt = 0
    while missing.any():
        attempt += 1
        source = (mix(np.arange(BINS, dtype=np.uint64) * np.uint64(1 << 20) + np.uint64(attempt))) % np.uint64(BINS)
        source = source.astype(np.int64)
        usable = missing & filled[:, source]
        out = np.where(usable, table[:, source], out)
        missing &= ~usable
    return out


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of rows of two signature tables."""
    share: np.ndarray = np.mean(first == second, axis=-1)
    return share


def clusters(table: np.ndarray, similarity: float, rows: int = 8) -> np.ndarray:
    """The lowest number of each text's cluster, shape (n,).

    Texts are candidates when one band of `rows` bins is equal, and share a cluster when at least `similarity` of
    all bins are.
    """
    parent = np.arange(len(table))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    valid = np.flatnonzero((table != _EMPTY).all(axis=1))
    for band in range(0, BINS - rows + 1, rows):
        keys = np.zeros(len(valid), dtype=np.uint64)
        for column in range(band, band + rows):
            keys = mix(keys ^ table[valid, column])
        order = np.argsort(keys, kind="stable")
        members, sorted_keys = valid[order], keys[order]
        fresh = np.concatenate(([True], sorted_keys[1:] != sorted_keys[:-1])) if len(order) else np.zeros(0, bool)
        head = members[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))] if len(order) else members
        # Each text is compared with the first of its bucket and with its neighbour; chains join the rest.
        for other, mask in ((head, ~fresh), (np.roll(members, 1), ~fresh)):
            left, right = other[mask], members[mask]
            close = agreement(table[left], table[right]) >= similarity
            for a, b in zip(left[close].tolist(), right[close].tolist(), strict=True):
                a, b = root(a), root(b)
                if a != b:
                    parent[max(a, b)] = min(a, b)
    return np.array([root(index) for index in range(len(table))], dtype=np.int64)


def step(documents: Sequence[Document], config: DedupConfig) -> Change:
    """Keep the longest document of each cluster, synthetic ones left out (the earliest of equally long ones)."""
    numbers = [number for number, document in enumerate(documents) if document.lane != "synthetic"]
    table = signatures([documents[number].text for number in numbers], config.shingle)
    cluster = clusters(table, config.similarity)
    best: dict[int, int] = {}
    for row, name in enumerate(cluster.tolist()):
        if name not in best or len(documents[numbers[row]].text) > len(documents[numbers[best[name]]].text):
            best[name] = row
    change = Change()
    for row, name in enumerate(cluster.tolist()):
        if best[name] != row:
            change.removed[numbers[row]] = "near duplicate"
    return change
