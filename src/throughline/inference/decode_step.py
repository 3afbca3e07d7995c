"""One decoding step: the next scores of all running rows.

`decode_step(model, slots)` picks the form: `CompactStep` for a plain decoder in single precision on the CPU, which
writes into buffers it keeps, `RecordedStep` on CUDA (see `inference.recorded_step`), `ModelStep` for everything else.
`CompactStep` computes what `Decoder.forward` computes, operation by operation. Buffers matter more than they look: at a
million parameters and 256 rows, half of a step's time went into asking the system for memory. Not covered: prefilling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from throughline.inference.slots import Slots, front
from throughline.model.decoder import Attention, Block, Decoder, FeedForward
from throughline.model.language_model import LanguageModel


class DecodeStep(Protocol):
    """A step over the running rows of `slots`: tokens in, scores out into `slots.logits`, keys and values written."""

    def __call__(self, slots: Slots) -> None: ...


class ModelStep:
    """Any model, through its `forward`."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __call__(self, slots: Slots) -> None:
        rows, length = slots.running, slots.attended
        slots.reserve(length)
        device = self.model.device
        tokens = torch.from_numpy(slots.tokens[:rows]).to(device)[:, None]
        where = torch.from_numpy(slots.at[:rows]).to(device)[:, None]
        mask = (torch.arange(length, device=device)[None] <= where)[:, None, None]
        hidden = self.model(tokens, positions_BT=where, mask=mask, cache=front(slots.cache, rows, length))
        slots.logits[:rows] = self.model.logits(hidden[:, 0])


@dataclass
class _Layer:
    """A block's modules, and both head norms as one matrix."""

    block: Block
    attention: Attention
    head_norm_GC: Tensor | None


class CompactStep:
    """A plain decoder on the CPU, with one set of buffers for all layers and steps."""

    def __init__(self, model: Decoder, slots: Slots) -> None:
        self.model, config, rows = model, model.config, slots.rows
        self.groups, self.heads, self.channels = (
            config.num_key_value_heads,
            config.num_attention_heads,
            config.head_dim,
        )
        wide = max(config.hidden_size, (self.heads + self.groups) * self.channels)
        self.x = torch.empty(rows, config.hidden_size)
        self.normed = torch.empty(rows, config.hidden_size)
        self.added = torch.empty(rows, config.hidden_size)
        self.qkv = torch.empty(rows, (self.heads + 2 * self.groups) * self.channels)
        self.rotated = torch.empty(rows, self.heads + self.groups, self.channels)
        self.half = torch.empty(rows, self.heads + self.groups, self.channels // 2)
        self.square = torch.empty(rows * wide)
        self.mean = torch.empty(rows * (self.heads + self.groups + 1))
        self.gate_up = torch.empty(rows, 2 * config.intermediate_size)
        self.gated = torch.empty(rows, config.intermediate_size)

    def layers(self) -> list[_Layer]:
        """The blocks with what is put together from their weights, which may change between steps."""
        found = []
        for block in self.model.blocks:
            assert isinstance(block, Block)
            attention, norm = block.attention, None
            if attention.q_norm is not None and attention.k_norm is not None:
                parts = [attention.q_norm.weight] * self.heads + [attention.k_norm.weight] * self.groups
                norm = torch.stack(parts)
            found.append(_Layer(block, attention, norm))
        return found

    def __call__(self, slots: Slots) -> None:
        rows, length = slots.running, slots.attended
        slots.reserve(length)
        x, normed, added = self.x[:rows], self.normed[:rows], self.added[:rows]
        at = torch.from_numpy(slots.at[:rows])
        model, eps = self.model, self.model.config.rms_norm_eps
        cos, sin = model.cos[at][:, None], model.sin[at][:, None]
        # Additive, since the kernel would make it so in every layer.
        mask = torch.zeros(rows, length).masked_fill_(torch.arange(length) > at[:, None], float("-inf"))[:, None, None]
        keys, values = slots.cache.keys, slots.cache.values
        starts = (torch.arange(rows)[:, None] * self.groups + torch.arange(self.groups)) * keys.shape[3]
        into = (starts + at[:, None]).reshape(-1)
        torch.index_select(model.embedding.weight, 0, torch.from_numpy(slots.tokens[:rows]), out=x)
        for number, layer in enumerate(self.layers()):
            self._norm(x, layer.block.attention_norm.weight, eps, normed)
            self._attend(layer, normed, cos, sin, mask, into, keys[number], values[number], length, eps)
            x.add_(added)
            self._norm(x, layer.block.feed_forward_norm.weight, eps, normed)
            feed_forward = layer.block.feed_forward
            if isinstance(feed_forward, FeedForward):
                self._feed_forward(feed_forward, normed, added)
                x.add_(added)
            else:
                x.add_(feed_forward(normed[:, None])[:, 0])
        self._norm(x, model.norm.weight, eps, normed)
        torch.mm(normed, model.output_weight.t(), out=slots.logits[:rows])

    def _norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """RMSNorm over the last axis, in the steps and the order of torch's."""
        square = torch.mul(x, x, out=self.square[: x.numel()].view(x.shape))
        mean = self.mean[: x.numel() // x.shape[-1]].view(*x.shape[:-1], 1)
        torch.mean(square, -1, keepdim=True, out=mean)
        torch.mul(x, mean.add_(eps).rsqrt_(), out=out)
        out.mul_(weight)

    def _attend(
        self,
        layer: _Layer,
        normed: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        into: Tensor,
        keys: Tensor,
        values: Tensor,
        length: int,
        eps: float,
    ) -> None:
        """The attention of one layer, into `self.added`."""
        rows, heads, groups, channels = len(normed), self.heads, self.groups, self.channels
        qkv = _linear(layer.attention.qkv, normed, self.qkv[:rows]).view(rows, -1, channels)
        qk, rotated, half = qkv[:, : heads + groups], self.rotated[:rows], self.half[:rows]
        if layer.head_norm_GC is not None:
            flat = self.square[: qk.numel()].view(qk.shape)
            self._norm_heads(qk, layer.head_norm_GC, eps, flat)
        first, second = qk.chunk(2, -1)
        one, two = rotated.chunk(2, -1)
        torch.mul(first, cos, out=one)
        one.sub_(torch.mul(second, sin, out=half))
        torch.mul(second, cos, out=two)
        two.add_(torch.mul(first, sin, out=half))
        keys.view(-1, channels).index_copy_(0, into, rotated[:, heads:].reshape(-1, channels))
        values.view(-1, channels).index_copy_(0, into, qkv[:, heads + groups :].reshape(-1, channels))
        # The queries of a group stand where time would, so keys need no repetition.
        q = rotated[:, :heads].view(rows, groups, heads // groups, channels)
        k, v = keys[:rows, :, :length], values[:rows, :, :length]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        _linear(layer.attention.out, out.reshape(rows, heads * channels), self.added[:rows])

    def _norm_heads(self, qk: Tensor, weight: Tensor, eps: float, square: Tensor) -> None:
        """RMSNorm of every query and key head, in place."""
        torch.mul(qk, qk, out=square)
        mean = self.mean[: qk.shape[0] * qk.shape[1]].view(*qk.shape[:2], 1)
        torch.mean(square, -1, keepdim=True, out=mean)
        qk.mul_(mean.add_(eps).rsqrt_()).mul_(weight)

    def _feed_forward(self, layer: FeedForward, normed: Tensor, out: Tensor) -> None:
        rows = len(normed)
        gate, up = _linear(layer.gate_up, normed, self.gate_up[:rows]).chunk(2, -1)
        gated = torch.ops.aten.silu.out(gate, out=self.gated[:rows]).mul_(up)
        _linear(layer.down, gated, out)


def _linear(layer: torch.nn.Linear, x: Tensor, out: Tensor) -> Tensor:
    if layer.bias is None:
        return torch.mm(x, layer.weight.t(), out=out)
    return torch.addmm(layer.bias, x, layer.weight.t(), out=out)


def decode_step(model: LanguageModel, slots: Slots) -> DecodeStep:
    """The fastest step for `model` that computes the same."""
    if model.device.type == "cuda":
        from throughline.inference.recorded_step import RecordedStep

        return RecordedStep(model)
    if type(model) is Decoder and model.output_weight.dtype == torch.float32:
        return CompactStep(model, slots)
    return ModelStep(model)
