"""An engine that answers by a function of the prompt's text; deterministic, with the real tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from loopline.chat.tokenizer import Tokenizer
from loopline.inference.engine import Completion, Sampling
from loopline.serve.model import ServedModel

Reply = Callable[[str, int], str]


class ScriptedEngine:
    """Answers `reply(prompt text, seed + sample number)`; `delay` seconds pass per batch when given."""

    def __init__(self, tokenizer: Tokenizer, reply: Reply, gate: threading.Event | None = None) -> None:
        self.tokenizer, self.reply, self.gate = tokenizer, reply, gate
        self.threads: set[int] = set()

    def _complete(self, prompt: Sequence[int], seed: int, limit: int) -> Completion:
        ids = [*self.tokenizer.encode(self.reply(self.tokenizer.decode(prompt), seed)), self.tokenizer.end_id]
        finish = "stop" if len(ids) <= limit else "length"
        ids = ids[:limit]
        return Completion(ids, [-0.25 * (1 + token % 3) for token in ids], finish, 0)  # type: ignore[arg-type]

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            assert self.gate.wait(10)
        seeds = seeds if seeds is not None else [sampling.seed + number for number in range(len(prompts))]
        return [
            [self._complete(prompt, seed + number, sampling.max_new_tokens) for number in range(sampling.n)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        self.threads.add(threading.get_ident())
        completion = self._complete(prompt, sampling.seed, sampling.max_new_tokens)
        yield from zip(completion.token_ids, completion.logprobs, strict=True)


def served(engine: ScriptedEngine, context: int = 256, harness: dict | None = None) -> ServedModel:
    return ServedModel(engine, "align", "weights-1", "harness-1", context, harness)
