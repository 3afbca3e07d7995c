"""The decoder: grouped-query attention, rotary positions, RMSNorm, SwiGLU, optional QK-norm and tied embeddings.

    model = Decoder(ModelConfig(...))
    hidden_BTD = model(tokens_BT)                       # plain causal attention
    logits_BTV = model.logits(hidden_BTD)

The query, key and value projections are one matrix here, and so are gate and up: fewer, larger products run faster.
`model.checkpoint` splits them into Hugging Face's tensors. Axes in names: B rows, T positions, D width, H query heads,
K key/value heads, C channels of a head, S cached positions, V vocabulary. Not covered: dropout, biases, experts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from throughline.model.config import ModelConfig


class KeyValueCache:
    """Keys and values of every layer for a batch of rows, written at each row's own positions.

    Shapes: (L, B, K, S, C) for both. Rows may be repeated or dropped with `select`.
    """

    def __init__(self, config: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (indices, repeats allowed), in that order."""
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)

    def grow(self, length: int) -> None:
        """Make room for `length` positions."""
        extra = length - self.length
        if extra > 0:
            self.keys = F.pad(self.keys, (0, 0, 0, extra))
            self.values = F.pad(self.values, (0, 0, 0, extra))


def rotate(x_BHTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Llama checkpoints (arXiv:2104.09864, eq. 34)."""
    first, second = x_BHTC.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


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
        self.qkv = nn.Linear(config.hidden_size, width, bias=False)
        self.out = nn.Linear(self.heads * self.channels, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.channels, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.channels, eps=config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: tuple[Tensor, Tensor] | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        rows, length, _ = x_BTD.shape
        heads_BTHC = self.qkv(x_BTD).view(rows, length, self.heads + 2 * self.groups, self.channels)
        q, k, v = heads_BTHC.split((self.heads, self.groups, self.groups), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v.transpose(1, 2)
        repeats = self.heads // self.groups
        if cache is not None and positions_BT is not None:
            keys, values = cache
            # Each row writes at its own positions: rows of different prompt lengths share one batch without padding
            # on the left, so a row's numbers do not depend on who sits beside it.
            index = positions_BT[:, None, :, None].expand(-1, self.groups, -1, self.channels)
            keys.scatter_(2, index, k)
            values.scatter_(2, index, v)
            k, v = keys, values
            if length == 1:
                # One query position: the queries of a group become the "time" axis, so keys need no repetition.
                grouped = q.view(rows, self.groups, repeats, self.channels)
                out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
                return self.out(out.reshape(rows, 1, self.heads * self.channels))
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and length > 1)
        return self.out(out.transpose(1, 2).reshape(rows, length, self.heads * self.channels))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): down(silu(gate) * up)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: tuple[Tensor, Tensor] | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin, mask, cache, positions_BT)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Decoder(nn.Module):
    """A decoder-only language model."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        half = config.head_dim // 2
        frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def initialize(self, generator: torch.Generator) -> Decoder:
        """Draw fresh weights: normal with deviation 1/sqrt(fan in), residual outputs scaled by 1/sqrt(2 L)."""
        depth = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() < 2:
                    parameter.fill_(1.0)
                    continue
                deviation = 0.02 if name.startswith("embedding") else 1 / math.sqrt(parameter.shape[1])
                scale = depth if name.endswith(("attention.out.weight", "feed_forward.down.weight")) else 1.0
                parameter.normal_(0.0, deviation * scale, generator=generator)
        return self

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        `positions_BT` defaults to 0..T-1. `mask` is boolean, true where a query may look, broadcast to (B, H, T, S);
        without it attention is causal over T. With a `cache`, keys and values are written at `positions_BT` first and
        `mask` must cover the cache's S positions.
        """
        if positions_BT is None:
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
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight)
