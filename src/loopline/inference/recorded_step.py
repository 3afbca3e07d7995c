"""Decoding steps on CUDA, recorded once per shape and replayed: a small step is mostly the launching of its kernels.

Rows and positions are rounded up to a few sizes, so few graphs are recorded. The key/value cache lies still for the
life of its slots. Weights may be changed in place between steps, never exchanged. Rows past the running ones feed
token 0 at position 0 of slots that nobody uses. A model whose step cannot be recorded (its experts' sizes depend on
the tokens) is computed through its `forward`. Prompts go
through `forward`. Not covered: several devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loopline.inference.model_step import ModelStep
from loopline.inference.slots import Slots, front, rounded
from loopline.model.cache import KeyValueCache
from loopline.model.decoder import Decoder
from loopline.model.language_model import LanguageModel

POSITIONS = 256
"""Positions are rounded up to a multiple of this."""


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    tokens_B1: Tensor
    where_B1: Tensor
    logits_BV: Tensor


def rounded_rows(rows: int, most: int) -> int:
    """The power of two at or above `rows`, or `most`."""
    return min(most, 1 << (rows - 1).bit_length())


class RecordedStep:
    """A model on CUDA."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.plain = ModelStep(model)
        self.recordings: dict[tuple[int, int], _Recording] = {}
        experts = getattr(model.config, "experts", None)
        self.records = type(model) is Decoder and experts is None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[KeyValueCache, Tensor]:
        """See `DecodeStep`."""
        return self.plain.prefill(prompts)

    def __call__(self, slots: Slots) -> None:
        """See `DecodeStep`."""
        if not self.records:
            self.plain(slots)
            return
        rows = rounded_rows(slots.running, slots.rows)
        length = min(slots.cache.length, rounded(slots.attended, POSITIONS))
        # Slots that do not run feed token 0 at position 0; what they write is overwritten when they are taken.
        recording = self.recordings.get((rows, length))
        if recording is None:
            recording = self.recordings[rows, length] = self._record(slots, rows, length)
        recording.tokens_B1.copy_(torch.from_numpy(slots.tokens[:rows])[:, None])
        recording.where_B1.copy_(torch.from_numpy(slots.at[:rows])[:, None])
        recording.graph.replay()
        slots.logits[: slots.running] = recording.logits_BV[: slots.running]

    def _record(self, slots: Slots, rows: int, length: int) -> _Recording:
        device = self.model.device
        tokens = torch.from_numpy(slots.tokens[:rows]).to(device)[:, None].contiguous()
        where = torch.from_numpy(slots.at[:rows]).to(device)[:, None].contiguous()
        places = torch.arange(length, device=device)[None]
        cache = front(slots.cache, rows, length)

        def step() -> Tensor:
            mask = (places <= where)[:, None, None]
            hidden = self.model(tokens, positions_BT=where, mask=mask, cache=cache)
            return self.model.logits(hidden[:, 0]).float()

        # Kernels are chosen and workspaces made outside the recording. The same keys are written again and again.
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step()
        return _Recording(graph, tokens, where, logits)
