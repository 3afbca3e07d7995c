"""The one engine: batched sampling with a key/value cache, shared group prompts and log-probs.

    engine = TorchEngine.from_checkpoint(directory)
    groups = engine.generate([prompt_ids, ...], Sampling(n=8, temperature=1.0, seed=0))

Each prompt is computed once for all its samples. Rows that finish leave the batch, and the batch shrinks. A row's
randomness comes from its own seed, so what it samples does not depend on its neighbours' draws. Log-probs are those of
the sampled tokens at the sampling temperature, before top-k and top-p cut the tail. Not covered: filling freed slots
while others still run (continuous batching), speculative decoding, several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from throughline.base.errors import UserError
from throughline.model.checkpoint import load_model, load_tokenizer
from throughline.model.language_model import LanguageModel
from throughline.model.tokenizer import END, Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_new_tokens: int = 64
    """Tokens at most, the stop token included."""
    temperature: float = 1.0
    """Divides the scores; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this (Holtzman et al. 2020, arXiv:1904.09751)."""
    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    n: int = 1
    """Samples of each prompt."""
    seed: int = 0
    """Seed of the call; row r of prompt p draws from (seed of p, r)."""
    stop_token_ids: tuple[int, ...] = (END,)
    """A sampled token among these ends its row."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.n < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"Sampling settings out of range: {self}",
                "use max_new_tokens >= 1, n >= 1, temperature >= 0, top_k >= 0 and 0 < top_p <= 1",
            )


@dataclass(frozen=True)
class Completion:
    """One sampled continuation."""

    token_ids: list[int]
    """Sampled ids, the stop token last when `finish` is "stop"."""
    logprobs: list[float]
    """Natural-log probability of each sampled id at the sampling temperature."""
    finish: Literal["stop", "length"]
    """Whether a stop token or the length limit ended it."""
    policy_version: int
    """Version of the weights that sampled it."""


class Engine(Protocol):
    """What stages ask of anything that samples."""

    tokenizer: Tokenizer

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt. `seeds` gives each prompt its own; default seed + position."""
        ...

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        """Ids and log-probs of one completion, as they are sampled."""
        ...


class TorchEngine:
    """The built-in engine, over any `LanguageModel`."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int = 256, version: int = 0) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.version = version

    @classmethod
    def from_checkpoint(cls, path: Path, batch_size: int = 256, device: str = "cpu") -> TorchEngine:
        """An engine over a checkpoint directory."""
        return cls(load_model(path, device).eval(), load_tokenizer(path), batch_size)

    def load(self, state: dict[str, Tensor], version: int) -> None:
        """Replace the weights; completions carry `version` from now on."""
        self.model.load_state_dict(state)
        self.version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in the order of `prompts`.

        Raises `UserError` for an empty prompt, or one that leaves no room below the model's longest sequence.
        """
        if seeds is None:
            seeds = [sampling.seed + number for number in range(len(prompts))]
        limit = self.model.config.max_position_embeddings
        for number, prompt in enumerate(prompts):
            if not prompt or len(prompt) >= limit:
                raise UserError(
                    f"Prompt {number} has {len(prompt)} tokens; this model takes 1 to {limit - 1}",
                    "shorten the prompt, or train a model with a larger max_position_embeddings",
                )
        # Neighbours of like length share a batch, so short prompts do not pay for long ones.
        order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
        step = max(1, self.batch_size // sampling.n)
        results: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            groups = self._generate_batch([prompts[i] for i in chosen], [seeds[i] for i in chosen], sampling)
            for number, group in zip(chosen, groups, strict=True):
                results[number] = group
            if progress is not None:
                progress(len(chosen))
        return results

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        """Ids and log-probs of one completion, as they are sampled; the same as `generate` with n = 1."""
        for tokens, logprobs, _ in self._decode([prompt], [sampling.seed], sampling):
            yield int(tokens[0]), float(logprobs[0])

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Completion]]:
        total = len(prompts) * sampling.n
        ids: list[list[int]] = [[] for _ in range(total)]
        logs: list[list[float]] = [[] for _ in range(total)]
        for tokens, logprobs, rows in self._decode(prompts, seeds, sampling):
            for row, token, logprob in zip(rows.tolist(), tokens.tolist(), logprobs.tolist(), strict=True):
                ids[row].append(token)
                logs[row].append(logprob)
        stops = set(sampling.stop_token_ids)
        done = [
            Completion(row_ids, row_logs, "stop" if row_ids[-1] in stops else "length", self.version)
            for row_ids, row_logs in zip(ids, logs, strict=True)
        ]
        return [done[start : start + sampling.n] for start in range(0, total, sampling.n)]

    @torch.inference_mode()
    def _decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (tokens, log-probs, row numbers) of the rows still running, one position at a time."""
        model, n = self.model, sampling.n
        device = model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        room = min(sampling.max_new_tokens, model.config.max_position_embeddings - longest)
        padded = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(list(prompt))
        cache = model.new_cache(len(prompts), longest)
        positions = torch.arange(longest).expand(len(prompts), longest)
        # Padding sits on the right, where causality already hides it from every real position.
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()[None, None]
        hidden = model(padded.to(device), positions_BT=positions.to(device), mask=causal, cache=cache)
        last = hidden[torch.arange(len(prompts)), lengths - 1]
        logits = model.logits(last).float().cpu()
        if n > 1:
            index = torch.arange(len(prompts)).repeat_interleave(n)
            cache.select(index.to(device))
            logits, lengths = logits[index], lengths[index]
        cache.grow(longest + room)
        uniforms = draw_uniforms(seeds, n, room)
        rows = torch.arange(len(prompts) * n)
        at = lengths.clone()
        stops = torch.tensor(sampling.stop_token_ids)
        slots = torch.arange(cache.length, device=device)
        for step in range(room):
            tokens, logprobs = sample(logits, sampling, uniforms[rows, step])
            yield tokens, logprobs, rows
            alive = ~torch.isin(tokens, stops)
            if step == room - 1 or not bool(alive.any()):
                return
            if not bool(alive.all()):
                keep = torch.nonzero(alive)[:, 0]
                cache.select(keep.to(device))
                tokens, rows, at = tokens[keep], rows[keep], at[keep]
            where = at.to(device)[:, None]
            mask = (slots[None] <= where)[:, None, None]
            hidden = model(tokens.to(device)[:, None], positions_BT=where, mask=mask, cache=cache)
            logits = model.logits(hidden[:, 0]).float().cpu()
            at = at + 1


def draw_uniforms(seeds: Sequence[int], n: int, length: int) -> Tensor:
    """Uniform numbers in [0, 1), (len(seeds) * n, length): row r of seed s is its own Philox stream."""
    out = np.empty((len(seeds) * n, length))
    for number, seed in enumerate(seeds):
        for sample_number in range(n):
            key = np.array([seed & (2**64 - 1), sample_number], dtype=np.uint64)
            out[number * n + sample_number] = np.random.Generator(np.random.Philox(key=key)).random(length)
    return torch.from_numpy(out)


def sample(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B,) and their log-probs (B,) by inverting the cumulative distribution at `uniforms_B`.

    Temperature 0 takes the likeliest token and reports its log-prob at temperature 1.
    """
    if sampling.temperature == 0:
        tokens = logits_BV.argmax(-1)
        return tokens, logits_BV.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    logprobs_BV = (logits_BV / sampling.temperature).log_softmax(-1)
    probabilities = logprobs_BV.exp()
    if sampling.top_k or sampling.top_p < 1:
        probabilities = probabilities * kept(probabilities, sampling)
    cumulative = probabilities.double().cumsum(-1)
    threshold = uniforms_B[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    # A threshold rounded up to the total would fall past the end; the last token with any mass is meant.
    reachable = (probabilities > 0).long().cumsum(-1).argmax(-1)
    tokens = torch.minimum(tokens, reachable)
    return tokens, logprobs_BV.gather(1, tokens[:, None])[:, 0]


def kept(probabilities_BV: Tensor, sampling: Sampling) -> Tensor:
    """Which tokens top-k and top-p leave, (B, V) boolean; the likeliest always stays."""
    ordered, order = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1:
        keep &= ordered.cumsum(-1) - ordered < sampling.top_p
    return torch.zeros_like(keep).scatter(1, order, keep)
