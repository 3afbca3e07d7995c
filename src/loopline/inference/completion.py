"""What is asked of an engine and what comes back: `Request` and `Completion`.

Not covered: how a completion is made (see `inference.scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from loopline.inference.sampling import Sampling

Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Request:
    """A prompt with settings of its own."""

    prompt: Sequence[int]
    sampling: Sampling = Sampling()
    seed: int | None = None
    """Seed of its samples; None is `sampling.seed`."""


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. Lists of one entry per token, or empty where there is nothing to say."""

    token_ids: list[int]
    """Sampled ids; the stop token or the tokens of the stop text last when `finish` is "stop"."""
    logprobs: list[float]
    """Natural-log probability of each sampled id at the sampling temperature; 0 for forced ones."""
    finish: Finish
    """What ended it: a stop token or text, the length limit, or whoever stopped the engine."""
    policy_version: int
    """Version of the weights that sampled its first token."""
    policy_versions: list[int] = field(default_factory=list)
    """Version of the weights that sampled each token; empty means `policy_version` for all."""
    forced: list[bool] = field(default_factory=list)
    """Tokens that the engine wrote instead of sampling, which no loss may see; empty when there are none."""
    kept: list[int] = field(default_factory=list)
    """How many tokens top-k and top-p left to choose from; empty when they are off."""
    kept_logmass: list[float] = field(default_factory=list)
    """Log of the probability they left: log-prob minus this is the log-prob among the kept."""
    kept_sets: list[bytes] = field(default_factory=list)
    """With `Sampling.keep_sets`: which tokens they left, a bit each, lowest first; see `kept_mask`."""
    stop_text: str | None = None
    """The stop text that ended it; None when a token did."""
    number: int = 0
    """Which of its prompt's samples it is."""

    def cut(self, size: int, finish: Finish) -> Completion:
        """Its first `size` tokens, ended by `finish`."""
        return replace(
            self,
            token_ids=self.token_ids[:size],
            logprobs=self.logprobs[:size],
            finish=finish,
            policy_versions=self.policy_versions[:size],
            forced=self.forced[:size],
            kept=self.kept[:size],
            kept_logmass=self.kept_logmass[:size],
            kept_sets=self.kept_sets[:size],
            stop_text=None,
        )

    def kept_mask(self, vocab_size: int) -> np.ndarray:
        """Which tokens could have been sampled at each position, (T, vocab_size) boolean."""
        rows = np.frombuffer(b"".join(self.kept_sets), dtype=np.uint8).reshape(len(self.kept_sets), -1)
        return np.unpackbits(rows, axis=1, count=vocab_size, bitorder="little").astype(bool)


Finished = Callable[[int, Completion], None]
"""Called with the number of a prompt and one of its completions, as soon as that is done."""
