"""The output layer in blocks of rows: log-probs and their gradient without all logits at once.

    logprobs_M, entropy_M = linear_scores(hidden_MD, weight_VD, target_M, temperature, with_entropy, rows)
    total = linear_total(hidden_MD, weight_VD, target_M, weights_M, dynamic, rows)

Of M rows times V tokens of vocabulary only `rows` times V exist at any time. Log-probs per row need their logits again
on the way back, a fourth product beside three; the gradient of a weighted sum is known on the way forward and needs
none (both after arXiv:2411.09009 and arXiv:2410.10989, as plain products). Not covered: output layers that are more
than a matrix (see `scores`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WHOLE_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 28}
"""Most logits computed at once, in numbers, by kind of device."""


def block_rows(count: int, vocabulary: int, device: str, limit: int | None = None) -> int | None:
    """Rows of a block, or None where all `count` rows fit at once."""
    limit = WHOLE_LOGITS.get(device, WHOLE_LOGITS["cpu"]) if limit is None else limit
    return None if count * vocabulary <= limit else max(1, limit // vocabulary)


def linear_scores(
    hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, temperature: float, with_entropy: bool, rows: int
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (M,) of `softmax(hidden @ weight.T / temperature)`, `rows` at a time.

    Products are in the type that autocast would use, everything after them in float32 at least.
    """
    hidden_MD, weight_VD = _as_autocast(hidden_MD, weight_VD)
    with torch.autocast(hidden_MD.device.type, enabled=False):
        apply: Any = _LinearScores.apply
        found: tuple[Tensor, Tensor] = apply(hidden_MD, weight_VD, target_M, temperature, with_entropy, rows)
    return found


class _LinearScores(torch.autograd.Function):
    """The blocks of `linear_scores`: nothing of size (M, V) outlives its block."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        target_M: Tensor,
        temperature: float,
        with_entropy: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        count = len(target_M)
        logprobs, totals, entropy = hidden_MD.new_zeros(3, count, dtype=_wide(hidden_MD)).unbind()
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            logits = _block(hidden_MD[part], weight_VD, temperature)
            total = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, target_M[part, None])[:, 0] - total
            totals[part] = total
            if with_entropy:
                # H = log Z - E[logit], with the probabilities computed in place.
                weighted = (logits - total[:, None]).exp_().mul_(logits).sum(-1)
                entropy[part] = total - weighted
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, totals)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        hidden_MD, weight_VD, target_M, totals = ctx.saved_tensors
        upstream = gradients[0] / ctx.temperature
        sink = _Gradients(hidden_MD, weight_VD, ctx.needs_input_grad)
        for start in range(0, len(target_M), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits = _block(hidden_MD[part], weight_VD, ctx.temperature)
            sink.add(part, logits.sub_(totals[part, None]).exp_(), target_M[part], upstream[part])
        return *sink.results(), None, None, None, None


class _Gradients:
    """Gradients of scaled log-probs by hidden states and output matrix, gathered block by block."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, wanted: tuple[bool, ...]) -> None:
        self.hidden_MD, self.weight_VD = hidden_MD, weight_VD
        self.to_hidden = torch.empty_like(hidden_MD) if wanted[0] else None
        # Blocks add up in float32: sums of many small numbers would be lost in bfloat16.
        self.to_weight = torch.zeros_like(weight_VD, dtype=_wide(weight_VD)) if wanted[1] else None

    def add(self, part: slice, probabilities: Tensor, target: Tensor, scale: Tensor) -> None:
        """Add the rows of `part`; overwrites `probabilities`. d log p / d logits = onehot - probabilities."""
        slope = probabilities.mul_(-scale[:, None])
        slope = slope.scatter_add_(1, target[:, None], scale[:, None]).to(self.hidden_MD.dtype)
        hidden = self.hidden_MD[part]
        if self.to_hidden is not None:
            self.to_hidden[part] = slope @ self.weight_VD
        if self.to_weight is None:
            return
        if hidden.dtype == self.to_weight.dtype:
            self.to_weight.addmm_(slope.T, hidden)
        else:
            self.to_weight += slope.T @ hidden

    def results(self) -> tuple[Tensor | None, Tensor | None]:
        """By hidden states and by the matrix, in their types; None where not wanted."""
        return self.to_hidden, None if self.to_weight is None else self.to_weight.to(self.weight_VD.dtype)


def _block(hidden: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    """Logits of a block of rows, in float32 at least, a tensor of its own."""
    logits = (hidden @ weight_VD.T).to(_wide(hidden))
    return logits.div_(temperature) if temperature != 1.0 else logits


def _wide(tensor: Tensor) -> torch.dtype:
    """The type that sums of numbers like these are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the type that autocast gives products."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    kind = torch.get_autocast_dtype(device)
    return [tensor.to(kind) for tensor in tensors]


def linear_total(
    hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, weights_M: Tensor, dynamic: bool, rows: int
) -> Tensor:
    """Sum of w log p, a number; with `dynamic` of w sg(p) log p. Gradients go to `hidden_MD` and `weight_VD` only."""
    hidden_MD, weight_VD = _as_autocast(hidden_MD, weight_VD)
    with torch.autocast(hidden_MD.device.type, enabled=False):
        apply: Any = _LinearTotal.apply
        total: Tensor = apply(hidden_MD, weight_VD, target_M, weights_M.to(_wide(hidden_MD)), dynamic, rows)
    return total


class _LinearTotal(torch.autograd.Function):
    """The blocks of `linear_total`; what is kept for the way back is the gradient itself."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        target_M: Tensor,
        weights_M: Tensor,
        dynamic: bool,
        rows: int,
    ) -> Tensor:
        total = hidden_MD.new_zeros((), dtype=_wide(hidden_MD))
        sink = _Gradients(hidden_MD, weight_VD, ctx.needs_input_grad)
        for start in range(0, len(target_M), rows):
            part = slice(start, start + rows)
            logits = _block(hidden_MD[part], weight_VD, 1.0)
            norm = logits.logsumexp(-1)
            logprobs = logits.gather(-1, target_M[part, None])[:, 0] - norm
            weights = weights_M[part] * logprobs.exp() if dynamic else weights_M[part]
            total += (weights * logprobs).sum()
            sink.add(part, logits.sub_(norm[:, None]).exp_(), target_M[part], weights)
        ctx.save_for_backward(*sink.results())
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        upstream = gradients[0]
        found = [None if gradient is None else gradient * upstream.to(gradient.dtype) for gradient in ctx.saved_tensors]
        return *found, None, None, None, None
