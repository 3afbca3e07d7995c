"""Bits per byte of a checkpoint on held-out text, comparable across tokenizers.

    rows, windows = corpus_bits(model, ShardSet(data), 256, 100, "sft", seed)
    row, windows = text_bits(model, tokenizer, Path("notes.txt"), "sft", seed)

Windows are scored left to right; nats per token become bits per UTF-8 byte: of a corpus by the source's bytes per
token, of a text file by its size. Not covered: sliding windows, which would give every token a full context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from loopline.base.errors import UserError
from loopline.chat.tokenizer import PAD, Tokenizer
from loopline.evaluation.statistics import Estimate, bootstrap
from loopline.model.language_model import LanguageModel
from loopline.training.shards import ShardSet

ROWS = 32
CORPUS_WINDOW = 256
"""Tokens of a window of a corpus at most; of a text file four times as many."""
METRIC = "bits_per_byte"
Row = dict[str, Any]


@torch.inference_mode()
def window_nats(model: LanguageModel, windows_NT: np.ndarray, pad: int = PAD) -> tuple[np.ndarray, np.ndarray]:
    """(nats, targets) per window of shape (n, length + 1); `pad` is no target."""
    device = model.device
    if not len(windows_NT):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    nats, counts = [], []
    for start in range(0, len(windows_NT), ROWS):
        block = torch.from_numpy(windows_NT[start : start + ROWS]).to(device)
        inputs, targets = block[:, :-1], block[:, 1:]
        logits = model.logits(model(inputs.clamp(min=0))).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad, reduction="none")
        nats.append(losses.view(targets.shape).double().sum(1).cpu().numpy())
        counts.append((targets != pad).sum(1).cpu().numpy())
    return np.concatenate(nats), np.concatenate(counts)


def window_rows(source: str, nats: np.ndarray, counts: np.ndarray, bytes_per_token: float) -> list[Row]:
    """One row per window, so that two checkpoints can be compared on the same text."""
    return [
        {
            "source": source,
            "window": number,
            "bits": round(float(lost) / math.log(2), 6),
            "bytes": round(float(count) * bytes_per_token, 3),
        }
        for number, (lost, count) in enumerate(zip(nats, counts, strict=True))
    ]


def bits_per_byte(rows: Sequence[Row], seed: int) -> Estimate:
    """Bits per byte over the rows of `window_rows`, with a bootstrap interval over windows; n counts windows.

    Computed from the rows as they are written, so that whoever has bpb.jsonl gets the same number. Raises `ValueError`
    without windows.
    """
    if not rows:
        raise ValueError("there is no held-out window to score")
    size = math.fsum(row["bytes"] for row in rows) / len(rows)
    # The ratio of sums; the interval treats the size of a window as fixed, since all but the last are full.
    shares = np.asarray([row["bits"] / size for row in rows])
    value = math.fsum(shares) / len(rows)
    low, high = bootstrap(shares, seed)
    return Estimate(value, min(low, value), max(high, value), len(rows))


def corpus_bits(
    model: LanguageModel, shards: ShardSet, documents: int, checkpoint: str, seed: int
) -> tuple[list[Row], list[Row]]:
    """One evaluation per source that has held-out text, and the windows they are made of: `documents` of each."""
    length = min(CORPUS_WINDOW, model.config.max_position_embeddings)
    rows: list[Row] = []
    scored: list[Row] = []
    for source in shards.sources:
        windows = shards.heldout_windows(source, length, documents)
        if len(windows):
            found = _measured(source, *window_nats(model, windows), shards.heldout_bytes_per_token(source), seed)
            rows.append({"checkpoint": checkpoint, **found[0]})
            scored += found[1]
    return rows, scored


def text_bits(
    model: LanguageModel, tokenizer: Tokenizer, path: Path, checkpoint: str, seed: int
) -> tuple[Row, list[Row]]:
    """The evaluation of a text file, every token of which is predicted once, and its windows.

    Raises `UserError` for a file that is empty or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError(f"{path} is empty", "name a file with text")
    length = min(4 * CORPUS_WINDOW, model.config.max_position_embeddings, len(ids))
    # A window begins with the token before it, the first one with what separates documents.
    stream = [tokenizer.end_id, *ids]
    windows = np.full((-(-len(ids) // length), length + 1), -1, dtype=np.int64)
    for number in range(len(windows)):
        part = stream[number * length : number * length + length + 1]
        windows[number, : len(part)] = part
    size = len(text.encode("utf-8")) / len(ids)
    row, scored = _measured(path.name, *window_nats(model, windows, pad=-1), size, seed)
    return {"checkpoint": checkpoint, **row}, scored


def _measured(
    source: str, nats: np.ndarray, counts: np.ndarray, bytes_per_token: float, seed: int
) -> tuple[Row, list[Row]]:
    rows = window_rows(source, nats, counts, bytes_per_token)
    found = bits_per_byte(rows, seed)
    numbers = {name: round(getattr(found, name), 6) for name in ("value", "low", "high")}
    row = {"task": source, "metric": METRIC, "part": "heldout", "n": found.n, **numbers, "seed": seed, "ungradable": 0}
    return row, rows
