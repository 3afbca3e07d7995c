"""Scaling laws and shapes: how a compute budget becomes a model, tokens, a batch and a learning rate.

Pure functions of numbers, each with its source. `choose_shape` picks from a ladder of decoders whose proportions are
those of published ones. Not covered: mixture-of-experts, embeddings that are not tied, attention FLOPs (below a tenth
of the whole while sequence length stays under the width times six; 6ND leaves them out, as Chinchilla does).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from loopline.model.config import ModelConfig

# (width, layers): aspect ratios (width per layer) of 21 to 128, rising with size as in published families.
LADDER = (
    (32, 2), (64, 2), (64, 4), (96, 3), (96, 4), (128, 3), (128, 4), (128, 6), (192, 4), (192, 6), (256, 6), (256, 8),
    (320, 8), (384, 8), (384, 12), (512, 8), (512, 12), (640, 12), (768, 12), (768, 16), (1024, 16), (1024, 24),
    (1280, 24), (1536, 24), (2048, 24), (2560, 28), (3072, 32), (4096, 32), (5120, 40), (6144, 48), (8192, 80),
)  # fmt: skip


@dataclass(frozen=True)
class Allocation:
    """A shape and how long to train it."""

    model: ModelConfig
    tokens: float


def training_flops(parameters: float, tokens: float) -> float:
    """C = 6ND: two operations per parameter and token forward, four backward (Kaplan et al. 2020, arXiv:2001.08361)."""
    return 6 * parameters * tokens


def optimal_parameters(flops: float, tokens_per_parameter: float) -> float:
    """The N for which C = 6ND and D = rN: sqrt(C / 6r) (Hoffmann et al. 2022, approach 1 and 2: r about 20)."""
    return math.sqrt(flops / (6 * tokens_per_parameter))


def batch_law(flops: float) -> float:
    """Tokens per step: 0.2920 C^0.3271 (DeepSeek LLM, arXiv:2401.02954, eq. 1)."""
    return 0.2920 * math.pow(flops, 0.3271)


def learning_rate_law(flops: float) -> float:
    """Peak learning rate of AdamW: 0.3118 C^-0.1250 (DeepSeek LLM, arXiv:2401.02954, eq. 1)."""
    return 0.3118 * math.pow(flops, -0.1250)


def round_batch(tokens: float, sequence_length: int) -> int:
    """`tokens` as the nearest power-of-two number of sequences, at least one."""
    return sequence_length << max(0, round(math.log2(max(1.0, tokens / sequence_length))))


def shape(width: int, layers: int, vocab_size: int, positions: int, qk_norm: bool = True) -> ModelConfig:
    """A decoder of this width and depth: SwiGLU of 8/3 the width, grouped queries, tied embeddings."""
    head_dim = 32 if width < 512 else 64 if width < 1536 else 128
    heads = width // head_dim
    most = max(1, min(heads // 2, 8))
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=32 * math.ceil(width * 8 / 3 / 32),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(n for n in range(1, most + 1) if heads % n == 0),
        head_dim=head_dim,
        qk_norm=qk_norm,
        max_position_embeddings=positions,
    )


def ladder(vocab_size: int, positions: int, qk_norm: bool = True) -> list[ModelConfig]:
    """Every shape, by rising parameters."""
    shapes = [shape(width, layers, vocab_size, positions, qk_norm) for width, layers in LADDER]
    return sorted(shapes, key=lambda model: model.parameters())


def nearest(shapes: list[ModelConfig], parameters: float) -> ModelConfig:
    """The shape whose size is nearest in proportion; the smaller on a tie."""
    return min(shapes, key=lambda model: (abs(math.log(model.parameters() / parameters)), model.parameters()))


def choose_shape(
    shapes: list[ModelConfig], flops: float, tokens_per_parameter: float, fits: Callable[[ModelConfig], bool]
) -> Allocation | None:
    """The fitting shape nearest to the optimum, with the tokens the budget buys it; None when none fits."""
    allowed = [model for model in shapes if fits(model)]
    if not allowed:
        return None
    model = nearest(allowed, optimal_parameters(flops, tokens_per_parameter))
    return Allocation(model, flops / (6 * model.parameters()))


def training_bytes(model: ModelConfig, sequence_length: int) -> int:
    """Least memory to train in float32: weights, gradients and two moments, and the activations of one sequence.

    34 values per channel and five attention maps per head and layer (Korthikanti et al. 2022, arXiv:2205.05198, for
    16-bit; doubled), and the scores and their gradient.
    """
    layer = 2 * 34 * sequence_length * model.hidden_size + 2 * 5 * model.num_attention_heads * sequence_length**2
    scores = 2 * 4 * sequence_length * model.vocab_size
    return 16 * model.parameters() + model.num_hidden_layers * layer + scores


def serving_bytes(model: ModelConfig, weight_bits: int, concurrency: int) -> int:
    """Memory in service: weights, and 16-bit keys and values of `concurrency` conversations of full length."""
    cache = 2 * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * model.max_position_embeddings
    return model.parameters() * weight_bits // 8 + concurrency * cache
