"""How the decoder's weights and Hugging Face's tensors correspond.

    tensors = to_huggingface(model.state_dict(), model.config)
    state = from_huggingface(tensors, config)

The decoder joins matrices that are multiplied with the same input (query, key and value; gate and up; all experts) and
a `Piece` says which of Hugging Face's tensors one of ours consists of. Nothing is computed: only cut and joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loopline.model.config import ModelConfig

FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Checkpoints that keep a layer's experts in one tensor, and the matrices of each expert in it."""


@dataclass(frozen=True)
class Piece:
    """One of the decoder's weights."""

    ours: str
    """Its name in the decoder's state dict."""
    theirs: tuple[str, ...]
    """The tensors it is joined from, along the first axis."""
    rows: tuple[int, ...] = ()
    """Rows of each; empty where there is one."""
    groups: int = 0
    """Experts on an axis of their own in ours; 0 for none."""


def pieces(config: ModelConfig) -> list[Piece]:
    """Every weight of the decoder that `config` describes."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    found = [
        Piece("embedding.weight", ("model.embed_tokens.weight",)),
        Piece("norm.weight", ("model.norm.weight",)),
    ]
    if not config.tie_word_embeddings:
        found.append(Piece("head.weight", ("lm_head.weight",)))
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        attention = f"{theirs}.self_attn"
        found += [
            Piece(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",)),
            Piece(f"{ours}.feed_forward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",)),
        ]
        for kind in ("weight", "bias"):
            if kind == "weight" or config.qkv_bias:
                parts = tuple(f"{attention}.{name}_proj.{kind}" for name in "qkv")
                found.append(Piece(f"{ours}.attention.qkv.{kind}", parts, (queries, keys, keys)))
            if kind == "weight" or config.output_bias:
                found.append(Piece(f"{ours}.attention.out.{kind}", (f"{attention}.o_proj.{kind}",)))
        if config.qk_norm:
            found += [Piece(f"{ours}.attention.{n}_norm.weight", (f"{attention}.{n}_norm.weight",)) for n in "qk"]
        found += _feed_forward(config, layer, f"{ours}.feed_forward", f"{theirs}.mlp")
    return found


def _feed_forward(config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Piece]:
    experts = config.experts
    if experts is not None and experts.sparse(layer):
        count, inner = experts.num_experts, experts.moe_intermediate_size
        gate_up = tuple(f"{theirs}.experts.{e}.{n}_proj.weight" for e in range(count) for n in ("gate", "up"))
        down = tuple(f"{theirs}.experts.{e}.down_proj.weight" for e in range(count))
        return [
            Piece(f"{ours}.router.weight", (f"{theirs}.gate.weight",)),
            Piece(f"{ours}.experts_gate_up", gate_up, (inner,) * (2 * count), count),
            Piece(f"{ours}.experts_down", down, (config.hidden_size,) * count, count),
        ]
    inner = config.intermediate_size
    found = []
    for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
        parts = (f"{theirs}.gate_proj.{kind}", f"{theirs}.up_proj.{kind}")
        found.append(Piece(f"{ours}.gate_up.{kind}", parts, (inner, inner)))
        found.append(Piece(f"{ours}.down.{kind}", (f"{theirs}.down_proj.{kind}",)))
    return found


def to_huggingface(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A decoder's state dict under Hugging Face's tensor names, contiguous copies on the CPU, sorted by name."""
    tensors: dict[str, Tensor] = {}
    for piece in pieces(config):
        value = state[piece.ours].detach().cpu()
        parts = value.flatten(0, 1 if piece.groups else 0).split(piece.rows) if piece.rows else (value,)
        tensors.update(zip(piece.theirs, parts, strict=True))
    return {name: tensors[name].contiguous().clone() for name in sorted(tensors)}


def from_huggingface(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A decoder's state dict from Hugging Face's tensors. Raises `KeyError` for a missing tensor."""
    state = {}
    for piece in pieces(config):
        parts = [tensors[name] for name in piece.theirs]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        state[piece.ours] = value.unflatten(0, (piece.groups, -1)) if piece.groups else value
    return state


def split_fused_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in which every expert's matrices are separate."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        layer, _, kind = name.partition(".experts.")
        if kind not in FUSED_EXPERTS:
            out[name] = value
            continue
        for number, expert in enumerate(value):
            for part, matrix in zip(FUSED_EXPERTS[kind], expert.chunk(len(FUSED_EXPERTS[kind])), strict=True):
                out[f"{layer}.experts.{number}.{part}.weight"] = matrix
    return out


def join_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_fused_experts`."""
    out = dict(tensors)
    for layer in sorted({name.partition(".experts.")[0] for name in tensors if ".experts." in name}):
        count = 1 + max(
            int(name.partition(".experts.")[2].split(".")[0])
            for name in tensors
            if name.startswith(f"{layer}.experts.")
        )
        for kind, parts in FUSED_EXPERTS.items():
            joined = [
                torch.cat([out.pop(f"{layer}.experts.{number}.{part}.weight") for part in parts])
                for number in range(count)
            ]
            out[f"{layer}.experts.{kind}"] = torch.stack(joined)
    return dict(sorted(out.items()))
