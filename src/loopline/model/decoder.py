"""The decoder: grouped-query attention, rotary positions, RMSNorm, SwiGLU; the Llama and Qwen families.

    model = Decoder(ModelConfig(...))
    hidden_BTD = model(tokens_BT)                       # plain causal attention
    logits_BTV = model.logits(hidden_BTD)

The query, key and value projections are one matrix here, and so are gate and up: fewer, larger products run faster.
`model.layout` splits them into Hugging Face's tensors. Layers of experts are in `model.experts`. Axes in names: B rows,
T positions, D width, H query heads, K key/value heads, C channels of a head, S cached positions, V vocabulary.
Not covered: dropout, sliding windows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopline.model.cache import KeyValueCache as KeyValueCache
from loopline.model.cache import write_at
from loopline.model.config import ModelConfig
from loopline.model.elementwise import RMSNorm, gated, split_heads
from loopline.model.experts import Experts
from loopline.model.language_model import LanguageModel
from loopline.model.layout import join_experts, to_huggingface
from loopline.model.segments import Segments


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.channels = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        width = (self.heads + 2 * self.groups) * self.channels
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * self.channels, config.hidden_size, bias=config.output_bias)
        self.q_norm = RMSNorm(self.channels, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.channels, eps=config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | Segments | None,
        cache: tuple[Tensor, Tensor] | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        rows, length, _ = x_BTD.shape
        qkv_BTX = self.qkv(x_BTD)
        if isinstance(mask, Segments):
            parts = [self._causal(part, cos, sin) for part in mask.gather(qkv_BTX.flatten(0, 1))]
            return self.out(mask.scatter(parts).view(rows, length, -1))
        q, k, v = self._heads(qkv_BTX, cos, sin)
        repeats = self.heads // self.groups
        if cache is not None and positions_BT is not None:
            keys, values = cache
            write_at(keys, k, positions_BT)
            write_at(values, v, positions_BT)
            k, v = keys, values
            if length == 1:
                # One query position: the queries of a group become the "time" axis, so keys need no repetition.
                grouped = q.view(rows, self.groups, repeats, self.channels)
                out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
                return self.out(out.reshape(rows, 1, self.heads * self.channels))
        return self.out(self._attend(q, k, v, mask))

    def _heads(self, qkv_BTX: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, T, C) each, normalized and rotated."""
        norms = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        return split_heads(qkv_BTX, (self.heads, self.groups), norms, cos, sin)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, H C); causal without a mask."""
        repeats = self.heads // self.groups
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)
        return out.transpose(1, 2).flatten(2)

    def _causal(self, qkv_BTX: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The attention of sequences that begin at the first column, from the projections of all."""
        length = qkv_BTX.shape[1]
        return self._attend(*self._heads(qkv_BTX, cos[:length], sin[:length]), None)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): down(silu(gate) * up)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x_BTD)))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        sparse = config.experts is not None and config.experts.sparse(layer)
        self.feed_forward = Experts(config) if sparse else FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | Segments | None,
        cache: tuple[Tensor, Tensor] | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin, mask, cache, positions_BT)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Turns per position of each pair of channels, in radians, (C/2,) in float64, scaled as the config says.

    "llama3" leaves waves that fit the original context `high_freq_factor` times, divides those that fit fewer than
    `low_freq_factor` times, and blends between (the scaling of Llama 3.1).
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    fits = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (fits - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class Decoder(LanguageModel):
    """A decoder-only language model."""

    config: ModelConfig
    takes_segments = True
    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # On the CPU whatever the default device is, so that a decoder made on "meta" to be filled has its tables.
        positions = torch.arange(config.max_position_embeddings, dtype=torch.float64, device="cpu")
        angles = positions[:, None] * rotary_frequencies(config)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def initialize(self, generator: torch.Generator) -> Decoder:
        """Initialize the weights: normal with deviation 1/sqrt(fan in), residual outputs scaled by 1/sqrt(2 L)."""
        depth = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() < 2:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                deviation = 0.02 if name.startswith("embedding") else 1 / math.sqrt(parameter.shape[-1])
                scale = (
                    depth if name.endswith(("attention.out.weight", "feed_forward.down.weight", "experts_down")) else 1
                )
                parameter.normal_(0.0, deviation * scale, generator=generator)
        return self

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | Segments | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm; see `LanguageModel.forward`."""
        if isinstance(mask, Segments):
            cos, sin = self.cos, self.sin
        elif positions_BT is None:
            cos, sin = self.cos[: tokens_BT.shape[1]], self.sin[: tokens_BT.shape[1]]
        else:
            cos, sin = self.cos[positions_BT][:, None], self.sin[positions_BT][:, None]
        x_BTD = self.embedding(tokens_BT)
        for number, block in enumerate(self.blocks):
            layer = None if cache is None else (cache.keys[number], cache.values[number])
            x_BTD = block(x_BTD, cos, sin, mask, layer, positions_BT)
        return self.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, (..., V), of hidden states (..., D)."""
        return F.linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output layer's matrix, (V, D); the embedding table when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`config.json` and tensors as Hugging Face has them; those of the source, where it was read from one."""
        tensors = to_huggingface(self.state_dict(), self.config)
        if self.source is None:
            return self.config.to_huggingface(), tensors
        if any(name.endswith(".experts.down_proj") for name in self.source.tensors):
            tensors = join_experts(tensors)
        if self.head is None and "lm_head.weight" in self.source.tensors:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        return dict(self.source.config), dict(sorted({**tensors, **self.source.extra}.items()))

    def new_cache(self, rows: int, length: int) -> KeyValueCache:
        """An empty cache on the model's device, in its type."""
        weight = self.embedding.weight
        return KeyValueCache(self.config, rows, length, weight.device, weight.dtype)
