"""Writing token shards: `.bin` token streams, `.idx` document ends, the manifest.

Use: `write_split(directory, source, "train", documents, tokenizer)` and `mixture(...)`. A stream is the documents one
after the other, each closed by `<|end|>`, in the order of the hash of their ids, so that neighbours have nothing to do
with each other. Not covered: reading them (see `training.shards`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from loopline.base.errors import UserError
from loopline.base.files import write_bytes
from loopline.chat.tokenizer import END
from loopline.corpus.document import Document

_BATCH = 512


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 while it holds every id, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write_split(
    directory: Path, source: str, split: str, documents: Sequence[Document], tokenizer: Tokenizer, vocab_size: int
) -> dict[str, Any]:
    """Write `{source}.{split}.bin` and `.idx` under `directory`; returns counts and digests for the manifest.

    `.idx` holds the end of each document in tokens (uint64), its `<|end|>` included. Bytes are of text, without special
    tokens.
    """
    dtype = token_dtype(vocab_size)
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document.id.encode()).digest())
    pieces, ends, total, size = [], [], 0, 0
    for first in range(0, len(ordered), _BATCH):
        texts = [document.text for document in ordered[first : first + _BATCH]]
        for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            ids = np.array([*encoding.ids, END], dtype=dtype)
            pieces.append(ids)
            total += len(ids)
            size += len(text.encode("utf-8"))
            ends.append(total)
    stream = np.concatenate(pieces).tobytes() if pieces else b""
    index = np.array(ends, dtype="<u8").tobytes()
    write_bytes(directory / f"{source}.{split}.bin", stream)
    write_bytes(directory / f"{source}.{split}.idx", index)
    return {
        f"{split}_tokens": total,
        f"{split}_documents": len(ordered),
        f"{split}_bytes": size,
        f"{split}_sha256": hashlib.sha256(stream).hexdigest(),
        f"{split}_index_sha256": hashlib.sha256(index).hexdigest(),
    }


def mixture(sizes: Mapping[str, int], weights: Mapping[str, float], synthetic_share: float) -> dict[str, float]:
    """Weight of each source, summing to one. `sizes` are tokens or bytes per source; a source of size 0 gets none.

    `weights` names sources or groups (the part before the slash); a group's weight is shared out by size among its
    sources not named themselves. Without `weights`, synthetic sources share `synthetic_share` and the others the rest.
    Raises `UserError` for a name that fits no source, and when all named sources are empty.
    """
    if weights:
        shares = _by_name(sizes, weights)
    else:
        made = [source for source in sizes if source.startswith("synthetic/")]
        natural = [source for source in sizes if source not in made]
        shares = _spread(sizes, made, synthetic_share) | _spread(sizes, natural, 1 - synthetic_share)
    total = sum(shares.values())
    if total <= 0:
        # One side of the mixture is missing altogether: what is there takes all.
        shares, total = {source: float(size) for source, size in sizes.items()}, float(sum(sizes.values()))
        if weights or total <= 0:
            raise UserError(
                "The mixture gives weight only to sources without text", "set `weights` to sources the funnel kept"
            )
    return {source: shares.get(source, 0.0) / total for source in sorted(sizes)}


def _by_name(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for name in sorted(weights):
        if name in sizes:
            shares[name] = weights[name] if sizes[name] else 0.0
    for name in sorted(weights):
        members = [source for source in sizes if source.split("/")[0] == name and source not in weights]
        if name not in sizes and not members:
            groups = sorted({source.split("/")[0] for source in sizes} | set(sizes))
            raise UserError(f"`weights` names {name!r}, which the corpus does not have", f"use {', '.join(groups)}")
        if name not in sizes:
            shares |= _spread(sizes, members, weights[name])
    return shares


def _spread(sizes: Mapping[str, int], members: Sequence[str], share: float) -> dict[str, float]:
    total = sum(sizes[source] for source in members)
    return {source: share * sizes[source] / total for source in members} if total else {}
