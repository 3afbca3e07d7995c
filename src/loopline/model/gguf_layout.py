"""How a decoder is written in GGUF, llama.cpp's format: metadata, tensor names, and the order of rotary channels.

    config = config_of(metadata, shapes, name)            # GGUF -> ModelConfig
    entries = metadata_of(config)                         # and back, without the prefix of the architecture
    places = tensor_names(config)                         # Hugging Face's name -> GGUF's

Both directions are here, so that what one does the other undoes. The tensor names are those of the package `gguf`
(extra "gguf"), which llama.cpp keeps. Not covered: mixtures of experts, sliding windows, other architectures.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from loopline.base.errors import UserError
from loopline.model.config import ModelConfig, RopeScaling
from loopline.model.layout import pieces

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""`general.architecture` of what is read and written; the same as our families without experts."""
ROPE_FREQS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, where Llama 3 stretches them by wave length."""
Shape = tuple[int, ...]
Metadata = Mapping[str, Any]


def require_gguf() -> Any:
    """The module `gguf`. Raises `UserError` when it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise UserError("GGUF files need the package gguf", "pip install 'loopline[gguf]'") from error


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """GGUF's name of every tensor that Hugging Face's checkpoint of `config` has."""
    gguf = require_gguf()
    kind = getattr(gguf.MODEL_ARCH, config.family.upper())
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    theirs = [name for piece in pieces(config) for name in piece.theirs]
    return {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in theirs}


def config_of(metadata: Metadata, shapes: Mapping[str, Shape], rope_freqs: np.ndarray[Any, Any] | None) -> ModelConfig:
    """The decoder that a GGUF file describes, from its metadata and its tensors' shapes (rows first).

    Raises `UserError` for an architecture or a setting that the decoder does not compute.
    """
    family = metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        raise UserError(
            f"A GGUF file of the architecture {family!r} cannot be imported",
            f"use one of {', '.join(ARCHITECTURES)}, or the model's checkpoint in safetensors",
        )

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"{family}.{key}", default)
        if isinstance(found, list):
            if len(set(found)) != 1:
                raise UserError(f"{family}.{key} differs between layers", "use a checkpoint whose layers are alike")
            found = found[0]
        if found is None:
            raise UserError(f"The file lacks the metadata {family}.{key}", "convert the model to GGUF again")
        return found

    context, width, heads = value("context_length"), value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length", width // heads)
    for lacking, what in (
        (value("expert_count", 0) > 0, "experts"),
        (0 < value("attention.sliding_window", 0) < context, "a sliding window"),
        (value("rope.dimension_count", head_dim) != head_dim, "rotation of a part of the channels"),
        (value("attention.value_length", head_dim) != head_dim, "values wider than keys"),
    ):
        if lacking:
            raise UserError(f"A GGUF file with {what} cannot be imported", "use the checkpoint in safetensors")
    bias = "blk.0.attn_q.bias" in shapes
    return ModelConfig(
        vocab_size=shapes["token_embd.weight"][0],
        hidden_size=width,
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=short(value("rope.freq_base", 10_000.0)),
        rms_norm_eps=short(value("attention.layer_norm_rms_epsilon")),
        tie_word_embeddings="output.weight" not in shapes,
        qk_norm=family == "qwen3",
        max_position_embeddings=context,
        qkv_bias=bias,
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_gate.bias" in shapes,
        rope_scaling=_scaling_of(metadata, family, head_dim, value("rope.freq_base", 10_000.0), rope_freqs),
    )


def metadata_of(config: ModelConfig) -> dict[str, int | float | str]:
    """The metadata of a decoder, keys without the architecture's name before them.

    Raises `UserError` for a decoder that llama.cpp's architecture of its family does not compute.
    """
    if config.family not in ARCHITECTURES or config.family == "qwen3" and config.qkv_bias:
        what = "biases in a Qwen3 attention" if config.family in ARCHITECTURES else f"the family {config.family}"
        raise UserError(f"GGUF export does not cover {what}", "export to safetensors")
    found: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    elif scaling is not None:
        found["rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
    return found


def to_gguf_order(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """A tensor as GGUF has it: llama.cpp turns neighbouring channels of Llama's queries and keys, we turn halves."""
    heads = _rotated_heads(name, config)
    if not heads:
        return tensor
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def from_gguf_order(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """`to_gguf_order` undone."""
    heads = _rotated_heads(name, config)
    if not heads:
        return tensor
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def rope_freqs_of(config: ModelConfig) -> np.ndarray[Any, Any] | None:
    """Divisors of the rotary frequencies, one for each pair of channels; None where llama.cpp needs none."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    return _divisors(scaling, config.head_dim, config.rope_theta)


def short(number: float) -> float:
    """A value stored in 32 bits as the shortest decimal that gives the same 32 bits: 1e-05, not 9.9999997e-06."""
    return float(str(np.float32(number)))


def _rotated_heads(name: str, config: ModelConfig) -> int:
    if config.family != "llama":
        return 0
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else 0


def _divisors(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray[Any, Any]:
    """Llama 3's rule: long waves are divided by the factor, short ones stay, those between are blended."""
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - share) / scaling.factor + share), dtype=np.float32)


def _scaling_of(
    metadata: Metadata, family: str, head_dim: int, theta: float, stored: np.ndarray[Any, Any] | None
) -> RopeScaling | None:
    kind = metadata.get(f"{family}.rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=short(metadata[f"{family}.rope.scaling.factor"]))
    if kind != "none":
        raise UserError(f"Rotary scaling of the kind {kind!r} is not imported", "use the checkpoint in safetensors")
    if stored is None:
        return None
    # The file holds the divisors only. They were made from a factor (the largest) and three settings, of which every
    # published Llama 3 has the same values but for the original length; whatever fits exactly is what was meant.
    written = metadata.get(f"{family}.rope.scaling.original_context_length")
    for original in (written, 8192, 4096, 16384, 32768):
        if original:
            guess = RopeScaling(
                kind="llama3", factor=short(float(stored.max())), original_max_position_embeddings=original
            )
            if np.allclose(_divisors(guess, head_dim, theta), stored, rtol=1e-4):
                return guess
    raise UserError(
        "The rotary divisors in the file (rope_freqs.weight) are not those of Llama 3's rule with its usual settings",
        "use the checkpoint in safetensors",
    )
