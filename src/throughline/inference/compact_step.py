"""The decoding step of a plain decoder on the CPU, in buffers and views that are made once.

It computes what `Decoder.forward` computes, operation by operation, so its scores are the same, bit for bit where
weights are not kept blocked. What is saved is everything around the operations: at a million parameters and few rows,
most of a step's time went into asking for memory and making views. Larger models' products are faster from blocked
weights (see `inference.product`). Rows stand in segments of about equal age, and each segment attends over its own
longest row only. Not covered: other devices and types.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from throughline.inference.product import Weight
from throughline.inference.slots import Slots
from throughline.model.decoder import Block, Decoder, FeedForward


class Norm:
    """RMSNorm of `x` over its last axis into `out`, in the steps and the order of torch's."""

    def __init__(self, x: Tensor, out: Tensor, square: Tensor, mean: Tensor, eps: float) -> None:
        self.x, self.out, self.eps = x, out, eps
        self.square = square[: x.numel()].view(x.shape)
        self.mean = mean[: x.numel() // x.shape[-1]].view(*x.shape[:-1], 1)

    def __call__(self) -> None:
        """Scale to mean square one; multiplying by the weight is the caller's."""
        torch.mul(self.x, self.x, out=self.square)
        torch.mean(self.square, -1, keepdim=True, out=self.mean)
        torch.mul(self.x, self.mean.add_(self.eps).rsqrt_(), out=self.out)


class Product:
    """A linear layer from `x` into `out`."""

    def __init__(self, weight: Weight, x: Tensor, out: Tensor) -> None:
        self.weight, self.x, self.out = weight, x, out

    def __call__(self) -> None:
        self.weight.multiply(self.x, self.out)


@dataclass
class _Layer:
    """A block's products and weights, over the views of one number of rows."""

    norm_weight: Tensor
    qkv: Product
    q_weight: Tensor | None
    k_weight: Tensor | None
    keys: Tensor
    values: Tensor
    flat_keys: Tensor
    flat_values: Tensor
    out: Product
    feed_forward_weight: Tensor
    gate_up: Product | None
    down: Product | None
    experts: nn.Module | None


class _Plan:
    """Every view that a step over `rows` rows needs."""

    def __init__(self, step: CompactStep, slots: Slots, rows: int) -> None:
        heads, groups, channels = step.heads, step.groups, step.channels
        self.rows, self.cache = rows, slots.cache.keys
        self.x, self.normed, self.added = step.x[:rows], step.normed[:rows], step.added[:rows]
        qkv = step.qkv[:rows]
        by_head = qkv.view(rows, -1, channels)
        qk, rotated = by_head[:, : heads + groups], step.rotated[:rows]
        self.q, self.k = qk[:, :heads], qk[:, heads:]
        self.first, self.second = qk.chunk(2, -1)
        self.one, self.two = rotated.chunk(2, -1)
        self.half = step.half[:rows]
        self.queries = rotated[:, :heads].view(rows, groups, heads // groups, channels)
        self.new_keys, self.new_values = rotated[:, heads:], by_head[:, heads + groups :]
        self.packed = step.packed[: rows * groups]
        self.packed_rows = self.packed.view(rows, groups, channels)
        self.attended = step.attended[:rows]
        self.attended_heads = self.attended.view(rows, groups, heads // groups, channels)
        gate_up, self.gated = step.gate_up[:rows], step.gated[:rows]
        self.gate, self.up = gate_up.chunk(2, -1)
        self.cos, self.sin = step.cos[:rows], step.sin[:rows]
        self.cos_heads, self.sin_heads = self.cos[:, None], self.sin[:, None]
        self.logits = slots.logits[:rows]
        self.starts = (torch.arange(rows)[:, None] * groups + torch.arange(groups)) * slots.cache.length
        eps = step.model.config.rms_norm_eps
        self.norm = Norm(self.x, self.normed, step.square, step.mean, eps)
        self.head_norm = Norm(qk, qk, step.square, step.mean, eps)
        self.segments = slots.segments(rows)
        self.lengths: tuple[int, ...] = ()
        self.parts: list[list[tuple[Tensor, Tensor]]] = []
        self.layers = []
        for block, keys, values in zip(step.model.blocks, slots.cache.keys, slots.cache.values, strict=True):
            assert isinstance(block, Block)
            attention, feed_forward = block.attention, block.feed_forward
            plain = feed_forward if isinstance(feed_forward, FeedForward) else None
            self.layers.append(
                _Layer(
                    norm_weight=block.attention_norm.weight,
                    qkv=Product(step.weight(attention.qkv), self.normed, qkv),
                    q_weight=None if attention.q_norm is None else attention.q_norm.weight,
                    k_weight=None if attention.k_norm is None else attention.k_norm.weight,
                    keys=keys,
                    values=values,
                    flat_keys=keys.view(-1, channels),
                    flat_values=values.view(-1, channels),
                    out=Product(step.weight(attention.out), self.attended, self.added),
                    feed_forward_weight=block.feed_forward_norm.weight,
                    gate_up=None if plain is None else Product(step.weight(plain.gate_up), self.normed, gate_up),
                    down=None if plain is None else Product(step.weight(plain.down), self.gated, self.added),
                    experts=None if plain is not None else feed_forward,
                )
            )

    def cover(self, lengths: tuple[int, ...]) -> list[list[tuple[Tensor, Tensor]]]:
        """Keys and values of every layer and segment over the segment's length."""
        if lengths != self.lengths:
            self.lengths = lengths
            spans = list(zip(self.segments, lengths, strict=True))
            self.parts = [
                [(layer.keys[a:b, :, :length], layer.values[a:b, :, :length]) for (a, b), length in spans]
                for layer in self.layers
            ]
        return self.parts


class CompactStep:
    """A plain decoder's step; one set of buffers for all layers and steps of `slots`."""

    def __init__(self, model: Decoder, slots: Slots, blocked: bool = False) -> None:
        """`blocked` keeps a second copy of the weights, in the order that suits few rows."""
        self.model, config, rows = model, model.config, slots.rows
        self.blocked = blocked
        self.weights: dict[nn.Linear, Weight] = {}
        self.output = Weight(model.output_weight, blocked=blocked)
        self.groups, self.heads = config.num_key_value_heads, config.num_attention_heads
        self.channels = config.head_dim
        both = self.heads + self.groups

        def buffer(*shape: int) -> Tensor:
            return torch.empty(rows, *shape)

        self.x, self.normed, self.added = (buffer(config.hidden_size) for _ in range(3))
        self.qkv = buffer((both + self.groups) * self.channels)
        self.rotated, self.half = buffer(both, self.channels), buffer(both, self.channels // 2)
        self.packed = torch.empty(rows * self.groups, self.channels)
        self.attended = buffer(self.heads * self.channels)
        self.square = torch.empty(rows * max(config.hidden_size, both * self.channels))
        self.mean = torch.empty(rows * both)
        self.gate_up, self.gated = buffer(2 * config.intermediate_size), buffer(config.intermediate_size)
        self.cos, self.sin = buffer(self.channels // 2), buffer(self.channels // 2)
        self.plans: dict[int, _Plan] = {}

    def weight(self, layer: nn.Linear) -> Weight:
        """The layer's weight, one for all numbers of rows."""
        if layer not in self.weights:
            self.weights[layer] = Weight(layer.weight, layer.bias, self.blocked)
        return self.weights[layer]

    def __call__(self, slots: Slots) -> None:
        rows = slots.computed
        lengths = tuple(slots.attended(start, end) for start, end in slots.segments(rows))
        slots.reserve(max(lengths))
        plan = self.plans.get(rows)
        if plan is None or plan.cache is not slots.cache.keys:
            plan = self.plans[rows] = _Plan(self, slots, rows)
        model, at = self.model, torch.from_numpy(slots.at[:rows])
        torch.index_select(model.cos, 0, at, out=plan.cos)
        torch.index_select(model.sin, 0, at, out=plan.sin)
        torch.index_select(model.embedding.weight, 0, torch.from_numpy(slots.tokens[:rows]), out=plan.x)
        # Additive, since the kernel would make it so in every layer.
        places = torch.arange(max(lengths))
        masks = [
            torch.zeros(end - start, length).masked_fill_(places[:length] > at[start:end, None], -torch.inf)
            for (start, end), length in zip(plan.segments, lengths, strict=True)
        ]
        views = [mask[:, None, None] for mask in masks]
        into = (plan.starts + at[:, None]).view(-1)
        for layer, parts in zip(plan.layers, plan.cover(lengths), strict=True):
            plan.norm()
            plan.normed.mul_(layer.norm_weight)
            self._attend(plan, layer, parts, views, into)
            plan.x.add_(plan.added)
            plan.norm()
            plan.normed.mul_(layer.feed_forward_weight)
            if layer.gate_up is not None and layer.down is not None:
                layer.gate_up()
                torch.mul(F.silu(plan.gate, inplace=True), plan.up, out=plan.gated)
                layer.down()
                plan.x.add_(plan.added)
            else:
                assert layer.experts is not None
                plan.x.add_(layer.experts(plan.normed[:, None])[:, 0])
        plan.norm()
        plan.normed.mul_(model.norm.weight)
        self.output.multiply(plan.normed, plan.logits)

    def _attend(
        self, plan: _Plan, layer: _Layer, parts: list[tuple[Tensor, Tensor]], masks: list[Tensor], into: Tensor
    ) -> None:
        """The attention of one layer, from `normed` into `added`."""
        layer.qkv()
        if layer.q_weight is not None and layer.k_weight is not None:
            plan.head_norm()
            plan.q.mul_(layer.q_weight)
            plan.k.mul_(layer.k_weight)
        torch.mul(plan.first, plan.cos_heads, out=plan.one)
        plan.one.sub_(torch.mul(plan.second, plan.sin_heads, out=plan.half))
        torch.mul(plan.second, plan.cos_heads, out=plan.two)
        plan.two.add_(torch.mul(plan.first, plan.sin_heads, out=plan.half))
        plan.packed_rows.copy_(plan.new_keys)
        layer.flat_keys.index_copy_(0, into, plan.packed)
        plan.packed_rows.copy_(plan.new_values)
        layer.flat_values.index_copy_(0, into, plan.packed)
        for (start, end), (keys, values), mask in zip(plan.segments, parts, masks, strict=True):
            # The queries of a group stand where time would, so keys need no repetition.
            found = F.scaled_dot_product_attention(plan.queries[start:end], keys, values, attn_mask=mask)
            plan.attended_heads[start:end] = found
        layer.out()
