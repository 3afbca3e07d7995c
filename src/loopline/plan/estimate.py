"""What a stage will need: peak memory, disk and time, from the sizes of its model and of what it does with it.

    found = estimate(read_json(path / "config.json"), [Work("train", rows=8, length=512, tokens=1e6),
                                                       Work("sample", rows=64, length=512, tokens=1e6)], speed=1e11)
    found.peak_bytes, found.disk_bytes, found.seconds

Formulas, no measurement. Peak memory of this package's own decoder in float32 on a CPU is within a factor of 1.6 of
what is measured, for models up to tens of millions of parameters (a test does that); what grows with parameters is
exact. Architectures that `transformers` computes may take more for activations. Time is within a factor of three at
best: it rests on a speed that the caller measured. Not covered: several devices, memory that allocators keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loopline.model.config import ModelConfig, unsupported

PROCESS_BYTES = 330_000_000
"""An interpreter with torch and compiled kernels, before any model."""
TRANSFORMERS_BYTES = 250_000_000
"""What `transformers` and `peft` add."""
SAMPLING_SHARE = 0.3
"""Share of the speed of training that token-by-token decoding in groups reaches."""
FLOAT = 4


@dataclass(frozen=True)
class Work:
    """One thing that a stage does with a model; sizes are those of the largest batch."""

    kind: Literal["train", "sample", "score"]
    """Forward and backward; token by token with a cache; forward alone."""
    rows: int
    """Sequences at once."""
    length: int
    """Tokens of a sequence, prompt included."""
    tokens: float = 0.0
    """Tokens in all, for the time."""
    adapter_rank: int | None = None
    """Train a low-rank adapter only; None trains every weight."""
    moments: int = 2
    """Values that the optimizer keeps for each trained parameter: 2 for AdamW, 1 for Muon or momentum."""
    others: int = 0
    """Further models of this size in memory: a reference, a teacher, a value network."""


@dataclass(frozen=True)
class Sizes:
    """What the formulas need of a model."""

    parameters: int
    width: int
    layers: int
    inner: int
    """Width of the feed-forward layer (of the chosen experts together)."""
    keys: int
    """Channels of all key heads of a layer."""
    vocab_size: int
    own: bool
    """Whether the built-in decoder computes it."""


@dataclass(frozen=True)
class Estimate:
    """What a stage will need."""

    peak_bytes: int
    """Memory of its process at its highest."""
    disk_bytes: int
    """Its checkpoint, and the state it can resume from while it trains."""
    seconds: float | None
    """Time; None without a speed."""


def estimate(
    config: ModelConfig | Mapping[str, Any], works: Sequence[Work], speed: float | None = None, keeps: bool = True
) -> Estimate:
    """What one process needs that does `works` in turn with models of this config, each holding its own weights.

    `config` is a `ModelConfig` or what a config.json says. `speed` is in floating-point operations per second of
    training. `keeps` says whether a checkpoint results.
    """
    sizes = sizes_of(config)
    weights = sizes.parameters * FLOAT
    process = PROCESS_BYTES + (0 if sizes.own and not any(w.adapter_rank for w in works) else TRANSFORMERS_BYTES)
    held = sum(weights * (1 + work.others) + _optimizer_bytes(sizes, work) for work in works)
    peak = process + held + max((_transient_bytes(sizes, work) for work in works), default=0)
    saved = weights if keeps else 0
    state = sum(weights + _optimizer_bytes(sizes, work) for work in works if work.kind == "train")
    seconds = None if speed is None else sum(_operations(sizes, work) for work in works) / speed
    return Estimate(int(peak), int(saved + state), seconds)


def sizes_of(config: ModelConfig | Mapping[str, Any]) -> Sizes:
    """The sizes of a model of any architecture; parameters are counted exactly for the decoder's own families."""
    if not isinstance(config, ModelConfig) and not unsupported(dict(config)):
        config = ModelConfig.from_raw(dict(config))
    if isinstance(config, ModelConfig):
        experts = config.experts
        inner = config.intermediate_size
        if experts is not None:
            inner = experts.num_experts_per_tok * experts.moe_intermediate_size
        keys = config.num_key_value_heads * config.head_dim
        layers = config.num_hidden_layers
        return Sizes(config.parameters(), config.hidden_size, layers, inner, keys, config.vocab_size, True)
    raw = {**config, **(config.get("text_config") or {})}

    def first(*names: str, default: int = 0) -> int:
        return int(next((raw[name] for name in names if raw.get(name)), default))

    width, layers = first("hidden_size", "n_embd", "d_model"), first("num_hidden_layers", "n_layer", "num_layers")
    heads = first("num_attention_heads", "n_head", "num_heads", default=1)
    inner = first("intermediate_size", "n_inner", "ffn_dim", default=4 * width)
    head_dim = first("head_dim", default=width // heads)
    keys = first("num_key_value_heads", default=heads) * head_dim
    vocab_size = first("vocab_size", default=50_000)
    tables = 1 if raw.get("tie_word_embeddings", True) else 2
    block = width * (2 * heads * head_dim + 2 * keys) + 3 * width * inner * max(1, first("num_experts"))
    return Sizes(tables * vocab_size * width + layers * block, width, layers, inner, keys, vocab_size, False)


def _trained(sizes: Sizes, work: Work) -> int:
    if work.kind != "train":
        return 0
    if work.adapter_rank is None:
        return sizes.parameters
    # Two thin matrices on each of the seven products of a layer.
    return work.adapter_rank * sizes.layers * (6 * sizes.width + 2 * sizes.keys + 3 * (sizes.width + sizes.inner))


def _optimizer_bytes(sizes: Sizes, work: Work) -> int:
    """Gradients and the optimizer's moments."""
    return _trained(sizes, work) * FLOAT * (1 + work.moments)


def _transient_bytes(sizes: Sizes, work: Work) -> float:
    """Activations, logits and caches."""
    tokens = work.rows * work.length
    one_layer = tokens * (8 * sizes.width + 4 * sizes.inner) * FLOAT
    if work.kind == "train":
        # Kept for the backward pass, per token and layer: 16 values a channel of the width, 5.5 of the inner one; and
        # three tables of logits (themselves, normalized, their gradient).
        kept = sizes.layers * (16 * sizes.width + 5.5 * sizes.inner) + 3 * sizes.vocab_size
        return tokens * kept * FLOAT
    if work.kind == "score":
        return one_layer + 2 * tokens * sizes.vocab_size * FLOAT
    cache = 2 * sizes.layers * sizes.keys * tokens * FLOAT
    return cache + one_layer / 2 + 3 * work.rows * sizes.vocab_size * FLOAT


def _operations(sizes: Sizes, work: Work) -> float:
    """Floating-point operations, those of decoding counted as the training that takes as long."""
    forward = 2 * sizes.parameters * work.tokens
    if work.kind == "train":
        return forward * (3 if work.adapter_rank is None else 2)
    return forward / (SAMPLING_SHARE if work.kind == "sample" else 1)
