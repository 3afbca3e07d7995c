"""Scaling laws and shapes: how a compute budget becomes a model, tokens, a batch and a learning rate.

Pure functions of numbers, each with its source. `choose_shape` picks from a ladder of decoders whose proportions are
those of published ones, with rungs close enough that a plan gets the ratio of tokens to parameters it asks for. Not
covered: mixture-of-experts, embeddings that are not tied, attention FLOPs (below a tenth of the whole while sequence
length stays under the width times six; 6ND leaves them out, as Chinchilla does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loopline.model.config import ModelConfig

# (width, layers): width per layer of 16 to 130, rising with size as in published families.
ANCHORS = (
    (32, 2), (64, 2), (64, 4), (96, 3), (96, 4), (128, 3), (128, 4), (128, 6), (192, 4), (192, 6), (256, 6), (256, 8),
    (320, 8), (384, 8), (384, 12), (512, 8), (512, 12), (640, 12), (768, 12), (768, 16), (1024, 16), (1024, 24),
    (1280, 24), (1536, 24), (2048, 24), (2560, 28), (3072, 32), (4096, 32), (5120, 40), (6144, 48), (8192, 80),
    (16384, 126),
)  # fmt: skip
"""Shapes taken before others of their size; the rest of the ladder lies between and beyond them."""
WIDEST = 65_536
"""Width at which the ladder ends: a dense decoder of some 20 trillion parameters."""
STEP = 0.02
"""Rungs are one for each `STEP` of the logarithm of the parameters, so the nearest is off by some 2% at most."""


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


def shape(
    width: int, layers: int, vocab_size: int, positions: int, qk_norm: bool = True, intermediate: int | None = None
) -> ModelConfig:
    """A decoder of this width and depth: SwiGLU of 8/3 the width by default, grouped queries, tied embeddings."""
    head_dim = 32 if width < 512 else 64 if width < 1536 else 128
    heads = width // head_dim
    most = max(1, min(heads // 2, 8))
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=intermediate or feed_forward(width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(n for n in range(1, most + 1) if heads % n == 0),
        head_dim=head_dim,
        qk_norm=qk_norm,
        max_position_embeddings=positions,
    )


@lru_cache(maxsize=16)
def ladder(vocab_size: int, positions: int, qk_norm: bool = True) -> tuple[ModelConfig, ...]:
    """Every shape, by rising parameters: for each `STEP` of size the one whose proportions are nearest the law's.

    Where the embedding table is most of the model there are gaps, since a width changes by whole heads.
    """
    best: dict[int, tuple[float, int, int, int]] = {}
    for width in widths():
        usual, inner = usual_layers(width), feed_forward(width)
        # Narrow models get their steps from the feed-forward layer, too: their widths are far apart.
        inners = range(32 * math.ceil(width / 16), 4 * width + 1, 32) if width < 512 else (inner,)
        for intermediate in inners:
            # Two depths give the parameters of every other: a layer adds the same each time.
            one, two = (shape(width, n, vocab_size, positions, qk_norm, intermediate).parameters() for n in (1, 2))
            for layers in range(max(1, math.floor(0.6 * usual)), math.ceil(1.7 * usual) + 1):
                rung = math.floor(math.log(one + (layers - 1) * (two - one)) / STEP)
                oddity = abs(math.log(layers / usual)) + abs(math.log(intermediate / inner))
                if intermediate == inner and (width, layers) in ANCHORS:
                    oddity = -1.0
                best[rung] = min(best.get(rung, (math.inf, 0, 0, 0)), (oddity, width, layers, intermediate))
    shapes = [shape(width, layers, vocab_size, positions, qk_norm, inner) for _, width, layers, inner in best.values()]
    return tuple(sorted(shapes, key=lambda model: model.parameters()))


def widths() -> list[int]:
    """Widths of whole heads, in steps of about 3% and more where heads are few."""
    found = [*range(32, 512, 32), *range(512, 1536, 64), *range(1536, 8192, 128)]
    while (found or [8192])[-1] < WIDEST:
        found.append(128 * max(found[-1] // 128 + 1, round(found[-1] * 1.03 / 128)))
    return found


def usual_layers(width: int) -> float:
    """Layers of a decoder of this width: between the anchors (the mean of those of one width) on straight lines of the
    logarithms."""
    known: dict[int, float] = {}
    for at, layers in ANCHORS:
        others = [n for w, n in ANCHORS if w == at]
        known[at] = math.exp(sum(map(math.log, others)) / len(others)) if len(others) > 1 else layers
    marks = sorted(known)
    above = max(1, next((k for k, mark in enumerate(marks) if mark >= width), len(marks) - 1))
    low, high = marks[above - 1], marks[above]
    share = math.log(width / low) / math.log(high / low)
    return known[low] * math.exp(share * math.log(known[high] / known[low]))


def feed_forward(width: int) -> int:
    """The inner width of SwiGLU: 8/3 of the width, in whole multiples of 32."""
    return 32 * math.ceil(width * 8 / 3 / 32)


def nearest(shapes: Sequence[ModelConfig], parameters: float) -> ModelConfig:
    """The shape whose size is nearest in proportion; the smaller on a tie."""
    return min(shapes, key=lambda model: (abs(math.log(model.parameters() / parameters)), model.parameters()))


def choose_shape(
    shapes: Sequence[ModelConfig], flops: float, tokens_per_parameter: float, fits: Callable[[ModelConfig], bool]
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
