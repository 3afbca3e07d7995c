"""Exact duplicates: whole documents, and in prose the paragraphs and lines the corpus already has.

Use: `exact_step(documents)`, then `passage_step(documents, DedupConfig())`. The first copy in the order of the corpus
stays. Code keeps its repeated passages: cutting them would leave programs that do not parse; its licence headers are
cut by `licences`. Not covered: near duplicates (see `neardup`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from loopline.corpus.config import DedupConfig
from loopline.corpus.document import Document
from loopline.corpus.funnel import Change
from loopline.text.kernel import Shard, Spans, batches


def exact_step(documents: Sequence[Document]) -> Change:
    """Remove documents whose text an earlier document has (xxh3-128)."""
    change = Change()
    seen: set[bytes] = set()
    for number, document in enumerate(documents):
        key = xxhash.xxh3_128_digest(document.text.encode("utf-8"))
        if key in seen:
            change.removed[number] = "exact copy"
        seen.add(key)
    return change


def passage_step(documents: Sequence[Document], config: DedupConfig) -> Change:
    """Cut repeated paragraphs and boilerplate lines out of prose; drop what becomes too short.

    A paragraph goes when any earlier prose has it; a line goes everywhere but in the first document that has it, once
    it occurs in more than `line_documents` documents.
    """
    numbers = [number for number, document in enumerate(documents) if document.lane == "prose"]
    texts = [documents[number].text for number in numbers]
    keys, spans = _passages(texts, "paragraphs", config.paragraph_bytes)
    again = np.ones(len(keys), dtype=bool)
    again[np.unique(keys, return_index=True)[1]] = False
    line_keys, line_spans = _passages(texts, "lines", config.line_bytes)
    boilerplate = _boilerplate(line_keys, line_spans.document, config.line_documents)

    pieces: dict[int, list[tuple[int, int, str]]] = {}
    for mask, found, reason in ((again, spans, "repeated paragraph"), (boilerplate, line_spans, "boilerplate line")):
        for index in np.flatnonzero(mask):
            start, end = int(found.start[index]), int(found.end[index])
            pieces.setdefault(int(found.document[index]), []).append((start, end, reason))
    change = Change()
    for row, ranges in pieces.items():
        number = numbers[row]
        content = documents[number].text.encode("utf-8")
        kept, position = bytearray(), 0
        for start, end, reason in sorted(ranges):
            if start < position:
                continue  # A line of a paragraph that is cut already.
            kept += content[position:start]
            position = end
            change.cut.append((number, reason, content[start:end].decode("utf-8")))
        kept += content[position:]
        text = _tidy(kept.decode("utf-8"))
        if len(text.encode("utf-8")) < config.min_document_bytes:
            change.removed[number] = "nothing new left"
        else:
            change.edited[number] = documents[number].with_text(text)
    return change


def _passages(texts: Sequence[str], kind: str, shortest: int) -> tuple[np.ndarray, Spans]:
    """Hashes of all passages of at least `shortest` bytes; spans count bytes within their own document."""
    parts: list[tuple[np.ndarray, ...]] = []
    for batch in batches([len(text) for text in texts]):
        shard = Shard([texts[i] for i in batch])
        spans: Spans = getattr(shard, kind)()
        long = spans.length >= shortest
        spans = Spans(spans.start[long], spans.end[long], spans.document[long])
        origin = shard.start[spans.document]
        parts.append((shard.hash(spans), spans.start - origin, spans.end - origin, spans.document + batch.start))
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return empty.astype(np.uint64), Spans(empty, empty, empty)
    keys, start, end, document = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return keys, Spans(start, end, document)


def _boilerplate(keys: np.ndarray, document: np.ndarray, limit: int) -> np.ndarray:
    """Mask of lines that occur in more than `limit` documents, but for each one's first document."""
    if not len(keys):
        return np.zeros(0, dtype=bool)
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
    pairs = np.unique(np.stack((inverse, document)), axis=1)
    spread = np.bincount(pairs[0], minlength=len(index))
    found: np.ndarray = (spread[inverse] > limit) & (document != document[index][inverse])
    return found


def _tidy(text: str) -> str:
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text.strip("\n")
