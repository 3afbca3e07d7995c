"""What training, inference and evaluation ask of a language model, whatever its architecture.

    hidden_BTD = model(tokens_BT)                       # after the last norm
    logits_BTV = model.logits(hidden_BTD)

`model.decoder.Decoder` computes the Llama and Qwen families, `model.huggingface.HuggingFaceModel` everything else,
`model.heads.ScoreModel` puts a scoring layer on either. Not covered: encoders, images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from loopline.model.cache import KeyValueCache
from loopline.model.segments import Segments

SOURCE_DTYPE = "source_dtype"
"""Key of config.json for the type that the weights had before training here changed it."""


class LanguageModelConfig(Protocol):
    """What every model's config says."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...


@dataclass(frozen=True)
class Source:
    """The checkpoint directory a model was read from, so that saving gives back what was there."""

    config: Mapping[str, Any]
    """Its `config.json`, every key."""
    generation: Mapping[str, Any] | None = None
    """Its `generation_config.json`."""
    tensors: frozenset[str] = frozenset()
    """Names of its tensors."""
    dtype: torch.dtype | None = None
    """Type of its weights on disk."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that are no weights, such as the rotary frequencies of early Llama checkpoints."""


def source_dtype(raw: Mapping[str, Any], stored: torch.dtype | None) -> torch.dtype | None:
    """The type that weights had before they were trained here; `stored` is that of the file."""
    named: torch.dtype | None = getattr(torch, str(raw.get(SOURCE_DTYPE)), None)
    return named or stored


class LanguageModel(nn.Module):
    """Tokens to hidden states to scores over the vocabulary. Axes: B rows, T positions, D width, V vocabulary."""

    config: LanguageModelConfig
    source: Source | None = None
    """Where it was read from; None for a model that was built here."""
    plain_output: bool = True
    """Whether `logits(h)` is `h @ output_weight.T` and nothing else, so that a kernel may compute it itself."""
    takes_segments: bool = False
    """Whether `mask` may be `Segments`."""

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | Segments | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        `positions_BT` defaults to 0..T-1. `mask` is boolean, true where a query may look, broadcast to (B, H, T, S);
        without it attention is causal over T. With a `cache`, keys and values are written at `positions_BT` first and
        `mask` must cover the cache's S positions. With `Segments` instead of a mask every sequence of the packed rows
        sees itself, at positions from 0; there must be no cache, and `positions_BT` is not looked at.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, (..., V), of hidden states (..., D)."""
        raise NotImplementedError

    @property
    def output_weight(self) -> Tensor:
        """The output layer's matrix, (V, D); the embedding table when tied."""
        raise NotImplementedError

    def new_cache(self, rows: int, length: int) -> KeyValueCache:
        """An empty cache on the model's device, in its type, for `rows` rows of `length` positions."""
        raise NotImplementedError

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`config.json` and tensors (contiguous, on the CPU) as Hugging Face has them."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_weight.device
