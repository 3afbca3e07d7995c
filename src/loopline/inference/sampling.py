"""How tokens are sampled: settings, the random numbers of each row, and sampling from logits.

    tokens_B, logprobs_B = sample(logits_BV, Sampling(temperature=0.8), draw_uniforms([seed], n=8, length=1)[:, 0])

Row r of a prompt samples from the Philox stream of (the prompt's seed, r), one number per position, so what it samples
depends on nothing beside it. Not covered: penalties, beam search, speculative decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.compute.team import Team

THREAD_TOKENS = 100_000
"""Rows times vocabulary from which another thread is worth using to sample."""
BLOCK = 64
"""Tokens of the vocabulary that are summed as one before the search inside them."""


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_new_tokens: int = 64
    """Tokens at most, the stop token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this (Holtzman et al. 2020, arXiv:1904.09751)."""
    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    n: int = 1
    """Samples of each prompt."""
    seed: int = 0
    """Seed of the call; row r of prompt p samples from (seed of p, r)."""
    stop_token_ids: tuple[int, ...] | None = None
    """A sampled token among these ends its row; None takes the tokenizer's."""
    stop: tuple[str, ...] = ()
    """A text that ends a row as soon as it is written, also across tokens; it stays part of the row."""
    thinking_budget: int | None = None
    """After this many tokens of an open <think>, the end of thinking is written by force; None leaves it open."""
    thinking_end: tuple[int, ...] | None = None
    """What is written by force; None is the tokenizer's </think>."""
    keep_sets: bool = False
    """Record which tokens top-k and top-p left at every position (V/8 bytes each), not only their share."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.n < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"Sampling settings out of range: {self}",
                "use max_new_tokens >= 1, n >= 1, temperature >= 0, top_k >= 0 and 0 < top_p <= 1",
            )
        if isinstance(self.stop, str) or any(not text for text in self.stop):
            raise UserError(f"stop is {self.stop!r}", "give a tuple of texts, none of them empty")
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise UserError(f"thinking_budget is {self.thinking_budget}", "use 0 or more tokens, or None for no budget")

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p may take tokens away."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


def row_generator(seed: int, number: int) -> np.random.Generator:
    """The random stream of sample `number` of a prompt with `seed`."""
    key = np.array([seed & (2**64 - 1), number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw_uniforms(seeds: Sequence[int], n: int, length: int) -> Tensor:
    """Uniform numbers in [0, 1), (len(seeds) * n, length): row r of seed s is its own Philox stream."""
    out = np.empty((len(seeds) * n, length))
    for row in range(len(out)):
        out[row] = row_generator(seeds[row // n], row % n).random(length)
    return torch.from_numpy(out)


@dataclass
class Draw:
    """What sampling one token gives, a row each."""

    tokens_B: Tensor
    logprobs_B: Tensor
    """At the sampling temperature (at 1 where it is 0), over the whole vocabulary."""
    kept_BV: Tensor | None = None
    """What top-k and top-p left; None where they are off."""
    kept_logmass_B: Tensor | None = None
    """Log of the share they left: log-prob minus this is the log-prob among the kept."""


class Scratch:
    """Buffers of sampling, kept from step to step: blocks this large are expensive to allocate anew."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.blocks = -(-vocab_size // BLOCK)
        self.rows = 0

    def of(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Space for log-probs (rows, V), and for probabilities (rows, whole blocks) with zeros at the end."""
        if rows > self.rows:
            self.logprobs = torch.empty(rows, self.vocab_size, device=device)
            self.probabilities = torch.zeros(rows, self.blocks * BLOCK, device=device)
            self.rows = rows
        return self.logprobs[:rows], self.probabilities[:rows]


def draw(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor, scratch: Scratch, team: Team | None = None) -> Draw:
    """Invert the cumulative distribution at `uniforms_B`; at temperature 0 take the likeliest token.

    `team` shares the work where it is done by compiled code: in single precision on the CPU, without top-k and top-p.
    Raises `UserError` when the logits are not finite.
    """
    if _compiles(logits_BV, sampling):
        return _draw_compiled(logits_BV, sampling, uniforms_B, scratch, team or Team(1))
    logprobs_BV, padded = scratch.of(len(logits_BV), logits_BV.device)
    if sampling.temperature == 0:
        torch.log_softmax(logits_BV, -1, out=logprobs_BV)
        tokens = logits_BV.argmax(-1)
        chosen = logprobs_BV.gather(1, tokens[:, None])[:, 0]
        _require_finite(chosen)
        return Draw(tokens, chosen)
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    torch.log_softmax(logits_BV, -1, out=logprobs_BV)
    probabilities = padded[:, : scratch.vocab_size]
    torch.exp(logprobs_BV, out=probabilities)
    keep = None
    if sampling.truncates:
        keep = kept(probabilities, sampling)
        probabilities.mul_(keep)
    tokens, total = search(padded, uniforms_B)
    chosen = logprobs_BV.gather(1, tokens[:, None])[:, 0]
    _require_finite(chosen)
    return Draw(tokens, chosen, keep, None if keep is None else total.log().float())


def _compiles(logits_BV: Tensor, sampling: Sampling) -> bool:
    single = logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32
    return single and sampling.temperature > 0 and not sampling.truncates


def _draw_compiled(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor, scratch: Scratch, team: Team) -> Draw:
    from loopline.inference import kernels

    rows, size = logits_BV.shape
    parts = max(1, min(team.size, rows * size // THREAD_TOKENS))
    tokens_B, logprobs_B = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    room = scratch.of(team.size, logits_BV.device)[1][:, :size].numpy()
    arrays = (uniforms_B.numpy(), room, tokens_B.numpy(), logprobs_B.numpy())
    team(kernels.choose, parts, logits_BV.numpy(), np.float32(sampling.temperature), *arrays)
    _require_finite(logprobs_B)
    return Draw(tokens_B, logprobs_B)


def _require_finite(chosen: Tensor) -> None:
    if not bool(torch.isfinite(chosen).all()):
        raise UserError(
            "The model's scores are not finite, so nothing can be sampled from them",
            "look for a diverged training or a damaged checkpoint; half precision may also have overflowed",
        )


def search(padded: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B,) where the cumulative sums of `padded` (B, blocks * BLOCK) pass `uniforms_B` of the total, and totals.

    First among sums of blocks, then inside the one found; all sums in double precision, so the token is that of one
    search over everything.
    """
    rows = torch.arange(len(padded), device=padded.device)
    blocks = padded.view(len(padded), -1, BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    total = ends[:, -1]
    threshold = (uniforms_B * total)[:, None]
    block = torch.searchsorted(ends, threshold, right=True)[:, 0].clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, ends[rows, (block - 1).clamp_(min=0)], 0.0)
    inside = blocks[rows, block].double().cumsum(-1).add_(before[:, None])
    place = torch.searchsorted(inside, threshold, right=True)[:, 0]
    tokens = block * BLOCK + place
    # A threshold rounded up to the total falls past the end; the last token with any mass is meant.
    past = place == BLOCK
    if bool(past.any()):
        reached = (padded > 0) & (torch.arange(padded.shape[1], device=padded.device) < tokens[:, None])
        last = (reached * torch.arange(padded.shape[1], device=padded.device)).argmax(-1)
        tokens = torch.where(past, last, tokens)
    return tokens, total


def sample(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B,) and their log-probs (B,) by inverting the cumulative distribution at `uniforms_B`.

    Temperature 0 takes the likeliest token and reports its log-prob at temperature 1.
    """
    found = draw(logits_BV.float(), sampling, uniforms_B, Scratch(logits_BV.shape[1]))
    return found.tokens_B, found.logprobs_B


def kept(probabilities_BV: Tensor, sampling: Sampling) -> Tensor:
    """Which tokens top-k and top-p leave, (B, V) boolean; the likeliest always stays, of equals the earlier."""
    size = probabilities_BV.shape[1]
    if sampling.top_p < 1:
        ordered = probabilities_BV.sort(dim=-1, descending=True).values
        counts = (ordered.cumsum(-1) - ordered < sampling.top_p).sum(-1).clamp_(min=1)
        if sampling.top_k:
            counts.clamp_(max=sampling.top_k)
    else:
        count = min(sampling.top_k, size)
        ordered = probabilities_BV.topk(count, dim=-1).values
        counts = torch.full((len(probabilities_BV),), count, device=probabilities_BV.device)
    least = ordered.gather(1, counts[:, None] - 1)
    keep = probabilities_BV >= least
    excess = keep.sum(-1) > counts
    if bool(excess.any()):
        above = probabilities_BV > least
        ties = keep & ~above
        keep = above | (ties & (ties.cumsum(-1) <= (counts - above.sum(-1))[:, None]))
    return keep
