"""The one engine: continuous batching with a key/value cache, shared group prompts and log-probs.

    engine = TorchEngine.from_checkpoint(directory)
    groups = engine.generate([prompt_ids, ...], Sampling(n=8, temperature=1.0, seed=0))
    for index, completion in engine.generate_stream([Request(prompt_ids, Sampling(n=8)), ...]): ...

Each prompt is computed once for all its samples. `batch_size` rows run at a time; a finished one's slot is taken by the
next at once, and the batch shrinks when none waits. A row's randomness comes from its own seed, so what it samples does
not depend on its neighbours. Log-probs are those of the sampled tokens
at the sampling temperature, before top-k and top-p cut the tail. Any server of OpenAI's API is an engine too:
`inference.openai_engine`. Not covered: speculative decoding, several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from loopline.base.errors import UserError
from loopline.chat.load import load_tokenizer
from loopline.chat.tokenizer import Tokenizer
from loopline.inference.completion import Completion as Completion
from loopline.inference.completion import Finished as Finished
from loopline.inference.completion import Request as Request
from loopline.inference.fingerprint import fingerprint
from loopline.inference.sampling import Sampling as Sampling
from loopline.inference.sampling import draw_uniforms as draw_uniforms
from loopline.inference.sampling import kept as kept
from loopline.inference.sampling import sample as sample
from loopline.inference.scheduler import Scheduler
from loopline.model.checkpoint import load_model
from loopline.model.language_model import LanguageModel


class Engine(Protocol):
    """What stages ask of anything that samples."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of what samples."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt. `seeds` gives each prompt its own; default seed + position.

        `finished` is called with every completion as soon as it is done.
        """
        ...

    def fingerprint(self) -> str:
        """What samples: equal where equal requests have equal answers."""
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
        self.loads = 0
        """Times that `load` replaced the weights."""

    @classmethod
    def from_checkpoint(cls, path: Path, batch_size: int = 256, device: str = "cpu") -> TorchEngine:
        """An engine over a checkpoint directory."""
        return cls(load_model(path, device).eval(), load_tokenizer(path), batch_size)

    def fingerprint(self) -> str:
        """A digest of the weights it samples with; equal to `fingerprint` of a state dict that is equal bit for bit."""
        return fingerprint(self.model.state_dict())

    def load(self, state: Mapping[str, Tensor], version: int, expected: str | None = None) -> None:
        """Replace the weights; tokens carry `version` from now on.

        `expected` is the fingerprint at the sender's; default that of `state`. Raises `UserError` when the engine then
        holds other weights: a tensor that was missing, skipped, cast or changed on the way.
        """
        if expected is None:
            expected = fingerprint(state)
        self.loads += 1
        try:
            self.model.load_state_dict(dict(state))
        except RuntimeError as error:
            raise UserError(
                f"Version {version} of the weights does not fit the sampler's model ({error})",
                "send every tensor of the model's `state_dict`, under its name and in its shape",
            ) from error
        found = self.fingerprint()
        if found != expected:
            raise UserError(
                f"The sampler does not have version {version} of the weights: its fingerprint is {found[:12]}, the "
                f"sender's {expected[:12]}",
                "every tensor must arrive; a part of the model may be frozen, cast or renamed",
            )
        self.version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in the order of `prompts`.

        `finished` is called with every completion as soon as it is done. Raises `UserError` for an empty prompt, or one
        after which nothing fits the model's context length.
        """
        if seeds is None:
            seeds = [sampling.seed + number for number in range(len(prompts))]
        for number, prompt in enumerate(prompts):
            self.room(prompt, sampling, f"Prompt {number}")
        # Prompts of similar length are computed together, so short ones are not padded to long ones.
        order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
        requests = [Request(prompts[number], sampling, seeds[number]) for number in order]
        results: list[list[Completion]] = [[] for _ in prompts]
        for place, completion in self.generate_stream(requests):
            number = order[place]
            results[number].append(completion)
            if finished is not None:
                finished(number, completion)
        for group in results:
            group.sort(key=lambda completion: completion.number)
        return results

    def generate_stream(
        self, requests: Iterable[Request], stop: Callable[[], bool] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """(Index of the request, completion) in the order in which they are done; `number` tells samples apart.

        Between two of them, `load` may replace the weights: every token says which version sampled it. Closing the
        iterator drops what runs; when `stop()` becomes true, running rows come as they are, as "interrupted".
        """
        scheduler = Scheduler(self, self.batch_size)
        for index, request in enumerate(requests):
            scheduler.add(index, request)
        while scheduler.busy:
            if stop is not None and stop():
                yield from scheduler.interrupt()
                return
            yield from scheduler.step()

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        """Ids and log-probs of one completion, as they are sampled; the same as `generate` with n = 1."""
        scheduler = Scheduler(self, 1)
        request = Request(prompt, sampling if sampling.n == 1 else replace(sampling, n=1))
        scheduler.add(0, request)
        while scheduler.busy:
            scheduler.step()
            yield scheduler.newest[0]

    def room(self, prompt: Sequence[int], sampling: Sampling, name: str = "The prompt") -> int:
        """Tokens that may follow `prompt`. Raises `UserError` naming it when it is empty or too long."""
        limit = self.model.config.max_position_embeddings
        if not prompt or len(prompt) >= limit:
            raise UserError(
                f"{name} has {len(prompt)} tokens; this model takes 1 to {limit - 1}",
                "shorten the prompt, or train a model with a larger max_position_embeddings",
            )
        return min(sampling.max_new_tokens, limit - len(prompt))
