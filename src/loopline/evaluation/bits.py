"""Bits per byte of a checkpoint on held-out text, comparable across tokenizers.

Windows of a source's held-out shard are scored left to right; nats per token become bits per UTF-8 byte by the source's
bytes per token. Not covered: sliding windows, which would give every token a full context.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from loopline.chat.tokenizer import PAD
from loopline.evaluation.statistics import Estimate, bootstrap
from loopline.model.language_model import LanguageModel

ROWS = 32


@torch.inference_mode()
def window_nats(model: LanguageModel, windows_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nats, targets) per window of shape (n, length + 1); padding is no target."""
    device = model.device
    if not len(windows_NT):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    nats, counts = [], []
    for start in range(0, len(windows_NT), ROWS):
        block = torch.from_numpy(windows_NT[start : start + ROWS]).to(device)
        inputs, targets = block[:, :-1], block[:, 1:]
        logits = model.logits(model(inputs)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none")
        nats.append(losses.view(targets.shape).double().sum(1).cpu().numpy())
        counts.append((targets != PAD).sum(1).cpu().numpy())
    return np.concatenate(nats), np.concatenate(counts)


def bits_per_byte(nats: np.ndarray, counts: np.ndarray, bytes_per_token: float, seed: int) -> Estimate:
    """Bits per byte over all windows of `window_nats`, with a bootstrap interval over windows; n counts windows.

    Raises `ValueError` without windows.
    """
    if not len(nats):
        raise ValueError("there is no held-out window to score")
    scale = 1 / (math.log(2) * bytes_per_token)
    mean_count = counts.mean()
    # The ratio of sums; the interval treats the token count of a window as fixed, since all but the last are full.
    value = float(nats.sum() / counts.sum()) * scale
    low, high = bootstrap(nats / mean_count * scale, seed)
    return Estimate(value, min(low, value), max(high, value), len(nats))


def window_rows(source: str, nats: np.ndarray, counts: np.ndarray, bytes_per_token: float) -> list[dict[str, Any]]:
    """One row per window, so that two checkpoints can be compared on the same text."""
    return [
        {
            "source": source,
            "window": number,
            "bits": round(float(lost) / math.log(2), 4),
            "bytes": round(float(count) * bytes_per_token),
        }
        for number, (lost, count) in enumerate(zip(nats, counts, strict=True))
    ]
