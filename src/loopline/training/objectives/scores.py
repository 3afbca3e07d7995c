"""Log-probs of the tokens that count, without ever holding all logits of a large vocabulary.

    scores = score_tokens(model, batch, temperature=1.0, with_entropy=True)

M scored tokens times V tokens of vocabulary is the largest tensor of a training step. Up to `blocks.WHOLE_LOGITS`
numbers it is computed at once; beyond that in blocks of rows, each dropped after use (see `blocks`), so that memory
grows with M + V instead of M times V. Where the batch says from which tokens an id was sampled (top-k, top-p),
log-probs and entropy are those among these tokens. Not covered: such batches through `blocks` (their blocks take the
slower way).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loopline.model.language_model import LanguageModel
from loopline.training.batch import Batch
from loopline.training.objectives.blocks import block_rows, linear_scores, linear_total


@dataclass(frozen=True)
class TokenScores:
    """Log-probs of the predicted ids of a batch, as flat vectors over the M ids whose weight is not zero."""

    logprobs_M: Tensor
    weights_M: Tensor
    index_M: Tensor
    """Where each id is in the flattened (B, T)."""
    entropy_M: Tensor
    """Entropy of the distribution it was predicted from, in nats, without gradient; zero where not asked for."""


def score_tokens(
    model: LanguageModel,
    batch: Batch,
    temperature: float = 1.0,
    with_entropy: bool = False,
    limit: int | None = None,
) -> TokenScores:
    """Log-probs of the ids with a weight, at `temperature`. Ids without one never reach the output layer.

    `limit` is the most logits held at once (`blocks.WHOLE_LOGITS`). An id that is not among the tokens it was sampled
    from has log-prob -inf.
    """
    hidden_MD, target_M, weights_M, index_M = scored_positions(model, batch)
    rows = block_rows(len(target_M), model.config.vocab_size, hidden_MD.device.type, limit)
    kept_MW = None if batch.kept_BTW is None else batch.kept_BTW.flatten(0, 1)[index_M]
    if rows is None:
        logprobs, entropy = _score_logits(model.logits(hidden_MD), target_M, temperature, with_entropy, kept_MW)
    elif model.plain_output and kept_MW is None:
        logprobs, entropy = linear_scores(hidden_MD, model.output_weight, target_M, temperature, with_entropy, rows)
    else:
        logprobs, entropy = _checkpointed(model, hidden_MD, target_M, temperature, with_entropy, rows, kept_MW)
    if weights_M is None:
        weights_M = torch.ones_like(logprobs.detach())
    return TokenScores(logprobs, weights_M, index_M, entropy)


def total_logprob(
    model: LanguageModel, batch: Batch, dynamic: bool = False, limit: int | None = None
) -> tuple[Tensor, float]:
    """(sum of w log p over the ids with a weight, sum of their weights w).

    With `dynamic` each w is also multiplied by p, without gradient. The same as summing `score_tokens`; where logits
    come in blocks it is faster, since a sum's gradient is known on the way forward.
    """
    hidden_MD, target_M, weights_M, _ = scored_positions(model, batch)
    rows = block_rows(len(target_M), model.config.vocab_size, hidden_MD.device.type, limit)
    if rows is not None and model.plain_output and torch.is_grad_enabled():
        weights = torch.ones_like(target_M, dtype=torch.float32) if weights_M is None else weights_M
        total = linear_total(hidden_MD, model.output_weight, target_M, weights, dynamic, rows)
    else:
        if rows is None:
            logprobs, _ = _score_logits(model.logits(hidden_MD), target_M, 1.0, False)
        else:
            logprobs, _ = _checkpointed(model, hidden_MD, target_M, 1.0, False, rows)
        weights = torch.ones_like(logprobs.detach()) if weights_M is None else weights_M
        if dynamic:
            logprobs = logprobs * logprobs.detach().exp()
        total = (logprobs * weights).sum()
    return total, float(weights.sum())


def scored_positions(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Of the M ids with a weight: the hidden states that predict them (M, D), the ids, weights and flat places.

    Weights are None where all are 1.
    """
    hidden_BTD = batch.hidden(model)
    rows, length, width = hidden_BTD.shape
    if batch.weights_BT is None:
        target = batch.tokens_BT[:, 1:].reshape(-1)
        index = torch.arange(rows * length, device=target.device).view(rows, length)[:, 1:].reshape(-1)
        return hidden_BTD[:, :-1].reshape(-1, width), target, None, index
    row, column, source = batch.scored()
    return hidden_BTD[row, source], batch.tokens_BT[row, column], batch.weights_BT[row, column], row * length + column


def sum_by_sequence(values_M: Tensor, scores: TokenScores, batch: Batch) -> Tensor:
    """Sum of `values_M` over each sequence, (N,)."""
    assert batch.sequences_BT is not None
    owners = batch.sequences_BT.reshape(-1)[scores.index_M]
    count = int(batch.sequences_BT.max()) + 1
    return torch.zeros(count, device=values_M.device, dtype=values_M.dtype).index_add(0, owners, values_M)


def _score_logits(
    logits: Tensor, target_M: Tensor, temperature: float, with_entropy: bool, kept_MW: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs (M,) and entropies (M,) from all logits (M, V), among the tokens of `kept_MW` where there is one."""
    if temperature != 1.0:
        logits = logits / temperature
    if kept_MW is not None:
        logits = logits.masked_fill(~unpack_bits(kept_MW, logits.shape[-1]), -torch.inf)
    full = logits.log_softmax(-1)
    logprobs = -F.nll_loss(full, target_M, reduction="none")
    entropy = torch.zeros_like(logprobs.detach())
    if with_entropy:
        with torch.no_grad():
            parts = full.exp() * full
            if kept_MW is not None:
                # A token that was not left adds nothing, where 0 times its log is NaN.
                parts = parts.masked_fill(full == -torch.inf, 0.0)
            entropy = -parts.sum(-1)
    return logprobs, entropy


def unpack_bits(packed_MW: Tensor, size: int) -> Tensor:
    """The first `size` bits of each row of bytes, lowest first, as booleans (M, size)."""
    places = torch.arange(8, dtype=torch.uint8, device=packed_MW.device)
    return (packed_MW[:, :, None] >> places & 1).flatten(1)[:, :size].bool()


def _checkpointed(
    model: LanguageModel,
    hidden_MD: Tensor,
    target_M: Tensor,
    temperature: float,
    with_entropy: bool,
    rows: int,
    kept_MW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Block by block through the model's own output layer: one that is more than a matrix, or some of its tokens."""

    def block(hidden: Tensor, target: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        return _score_logits(model.logits(hidden), target, temperature, with_entropy, kept)

    count = -(-len(target_M) // rows)
    sets = [None] * count if kept_MW is None else torch.split(kept_MW, rows)
    parts = [
        checkpoint(block, hidden, target, kept, use_reentrant=False)
        for hidden, target, kept in zip(torch.split(hidden_MD, rows), torch.split(target_M, rows), sets, strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
