"""A decoding step of any model, through its `forward`.

Not covered: the faster forms (see `inference.decode_step`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loopline.inference.slots import Slots, front
from loopline.model.cache import KeyValueCache
from loopline.model.language_model import LanguageModel


class ModelStep:
    """Any model, through its `forward`."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __call__(self, slots: Slots) -> None:
        """See `DecodeStep`."""
        rows, length = slots.computed, slots.attended
        slots.reserve(length)
        device = self.model.device
        tokens = torch.from_numpy(slots.tokens[:rows]).to(device)[:, None]
        where = torch.from_numpy(slots.at[:rows]).to(device)[:, None]
        mask = (torch.arange(length, device=device)[None] <= where)[:, None, None]
        hidden = self.model(tokens, positions_BT=where, mask=mask, cache=front(slots.cache, rows, length))
        slots.logits[:rows] = self.model.logits(hidden[:, 0])

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[KeyValueCache, Tensor]:
        """See `DecodeStep`."""
        model, device = self.model, self.model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        padded = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(list(prompt))
        cache = model.new_cache(len(prompts), longest)
        positions = torch.arange(longest).expand(len(prompts), longest)
        # Padding sits on the right, where causality already hides it from every real position.
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()[None, None]
        hidden = model(padded.to(device), positions_BT=positions.to(device), mask=causal, cache=cache)
        last = hidden[torch.arange(len(prompts)), lengths - 1]
        return cache, model.logits(last).float()
