"""Bits per byte of a checkpoint on held-out text, comparable across tokenizers.

Windows of a source's held-out shard are scored left to right; nats per token become bits per UTF-8 byte by the source's
bytes per token. Not covered: sliding windows, which would give every token a full context.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from throughline.grading.statistics import Estimate, bootstrap
from throughline.model.decoder import Decoder
from throughline.model.tokenizer import PAD

ROWS = 32


@torch.inference_mode()
def window_nats(
    model: Decoder, windows_NT: np.ndarray, advance: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, targets) per window of shape (n, length + 1); padding is no target."""
    device = model.embedding.weight.device
    nats, counts = [], []
    for start in range(0, len(windows_NT), ROWS):
        block = torch.from_numpy(windows_NT[start : start + ROWS]).to(device)
        inputs, targets = block[:, :-1], block[:, 1:]
        logits = model.logits(model(inputs)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none")
        nats.append(losses.view(targets.shape).double().sum(1).cpu().numpy())
        counts.append((targets != PAD).sum(1).cpu().numpy())
        if advance is not None:
            advance(len(block))
    return np.concatenate(nats), np.concatenate(counts)


def bits_per_byte(
    model: Decoder,
    windows_NT: np.ndarray,
    bytes_per_token: float,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> Estimate:
    """Bits per byte over all windows, with a bootstrap interval over windows; n is the number of windows.

    Raises `ValueError` without windows.
    """
    if not len(windows_NT):
        raise ValueError("there is no held-out window to score")
    nats, counts = window_nats(model, windows_NT, advance)
    scale = 1 / (math.log(2) * bytes_per_token)
    mean_count = counts.mean()
    # The ratio of sums; the interval treats the token count of a window as fixed, since all but the last are full.
    value = float(nats.sum() / counts.sum()) * scale
    low, high = bootstrap(nats / mean_count * scale, seed)
    return Estimate(value, min(low, value), max(high, value), len(windows_NT))
