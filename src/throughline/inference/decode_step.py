"""One decoding step: the next scores of all running rows.

`decode_step(model, slots)` picks the form: `CompactStep` (see `inference.compact_step`) for a plain decoder in single
precision on the CPU, `RecordedStep` (see `inference.recorded_step`) on CUDA, `ModelStep` for everything else.
`torch.compile` does not pay on the CPU: at a million parameters and 8 rows a compiled `forward` took 3.3 ms, the plain
one 3.9 and `CompactStep` 1.7; at 128 rows it was no faster than the plain one, after 24 s of compiling for each shape.
At a million parameters an operation takes some tens of microseconds, and waking a second thread for it takes as long:
on two cores, a step of 128 rows took 17 ms with two threads and 11 ms with one, which `step_threads` therefore asks
for. Two halves of one step on a thread each, waiting for each other, were a quarter slower than one thread; batches
that do not wait for each other gain (`inference.lanes`). Not covered: prefilling.
"""

from __future__ import annotations

from typing import Protocol

import torch

from throughline.inference.product import can_block
from throughline.inference.slots import Slots, front
from throughline.model.decoder import Decoder
from throughline.model.language_model import LanguageModel

SMALL = 8_000_000
"""Parameters below which operations are too short to be divided among threads, or to gain by blocked weights."""


class DecodeStep(Protocol):
    """A step over the running rows of `slots`: tokens in, scores out into `slots.logits`, keys and values written."""

    def __call__(self, slots: Slots) -> None: ...


class ModelStep:
    """Any model, through its `forward`."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __call__(self, slots: Slots) -> None:
        rows, length = slots.computed, slots.attended(0, slots.running)
        slots.reserve(length)
        device = self.model.device
        tokens = torch.from_numpy(slots.tokens[:rows]).to(device)[:, None]
        where = torch.from_numpy(slots.at[:rows]).to(device)[:, None]
        mask = (torch.arange(length, device=device)[None] <= where)[:, None, None]
        hidden = self.model(tokens, positions_BT=where, mask=mask, cache=front(slots.cache, rows, length))
        slots.logits[:rows] = self.model.logits(hidden[:, 0])


def is_plain(model: LanguageModel) -> bool:
    """Whether `CompactStep` computes `model`."""
    return model.device.type == "cpu" and type(model) is Decoder and model.output_weight.dtype == torch.float32


def step_threads(model: LanguageModel) -> int | None:
    """Threads that a step of `model` should use; None leaves them."""
    return 1 if small(model) and model.device.type == "cpu" else None


def small(model: LanguageModel) -> bool:
    """Whether the model's products are narrow."""
    return sum(parameter.numel() for parameter in model.parameters()) < SMALL


def decode_step(model: LanguageModel, slots: Slots) -> DecodeStep:
    """The fastest step for `model` that computes the same."""
    if model.device.type == "cuda":
        from throughline.inference.recorded_step import RecordedStep

        return RecordedStep(model)
    if is_plain(model):
        from throughline.inference.compact_step import CompactStep

        assert isinstance(model, Decoder)
        return CompactStep(model, slots, blocked=not small(model) and can_block())
    return ModelStep(model)
