"""Streamed replies: tokens become server-sent events as they are sampled.

`TokenText` turns token ids into text without ever showing half a character or part of a stop string;
`stream_chunks` yields OpenAI's chunk objects. Whatever the pieces, the joined stream equals the reply that the same
seed gets without streaming. Not covered: HTTP framing (see `serve.app`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loopline.chat.forms.form import Call
from loopline.chat.message import call_entry
from loopline.chat.parser import Event
from loopline.chat.tokenizer import Tokenizer
from loopline.inference.engine import Completion
from loopline.serve.answers import Answer, Plan, call_key, finish_answer, first_stop, token_entry
from loopline.serve.worker import EngineWorker


@dataclass
class TokenText:
    """Text that is safe to show, from ids that arrive one by one."""

    tokenizer: Tokenizer
    stops: Sequence[str]
    ids: list[int] = field(default_factory=list)
    shown: int = 0
    stopped: bool = False

    def add(self, token_id: int) -> str:
        """Take one id; returns new text that no later id can change."""
        self.ids.append(token_id)
        text = self.tokenizer.decode(self.ids)
        place = first_stop(text, self.stops)
        if place is not None:
            self.stopped = True
            return self._show(text[:place])
        # The replacement character may be the first bytes of a character still to come.
        safe = len(text) - (len(text) - len(text.rstrip("\ufffd")))
        held = max((self._held(text[:safe], stop) for stop in self.stops), default=0)
        return self._show(text[: safe - held])

    def rest(self) -> str:
        """What was held back, once no more ids come."""
        return "" if self.stopped else self._show(self.tokenizer.decode(self.ids))

    def _show(self, text: str) -> str:
        new = text[self.shown :]
        self.shown = max(self.shown, len(text))
        return new

    @staticmethod
    def _held(text: str, stop: str) -> int:
        longest = min(len(text), len(stop) - 1)
        return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


@dataclass
class StreamedAnswer:
    """Filled in while a stream runs; `answer` is set at its end."""

    answer: Answer | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def _deltas(events: Sequence[Event], completion_id: str, calls: list[str]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    for kind, value in events:
        if isinstance(value, Call):
            key = call_key(completion_id, 0, len(calls))
            deltas.append({"tool_calls": [{"index": len(calls), **call_entry(value, key)}]})
            calls.append(key)
        else:
            deltas.append({"reasoning_content" if kind == "reasoning" else "content": value})
    return deltas


async def stream_chunks(
    worker: EngineWorker,
    plan: Plan,
    completion_id: str,
    logprobs: bool,
    chunk: Callable[..., dict[str, Any]],
    state: StreamedAnswer,
) -> AsyncGenerator[dict[str, Any], None]:
    """Chunks of one streamed answer; `chunk(delta, finish_reason, logprobs)` wraps a delta.

    Closing the iterator early (the client left) cancels the generation; `state` then holds what was written so far.
    Raises what the engine raised.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, float] | BaseException | None]()
    tokenizer = worker.engine.tokenizer

    def put(item: tuple[int, float] | BaseException | None) -> None:
        # A closed loop means the server is gone and nobody reads on; the engine's thread must not die of it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    handle = worker.stream(plan.prompt, plan.sampling, lambda token, value: put((token, value)), put)
    text = TokenText(tokenizer, plan.stops)
    parser, calls = plan.parser(tokenizer), list[str]()
    ended = False
    try:
        yield chunk({"role": "assistant", "content": ""})
        while not text.stopped:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                break
            token, value = item
            state.token_ids.append(token)
            state.logprobs.append(value)
            entry = {"content": [token_entry(tokenizer, token, value)]} if logprobs else None
            if token in (plan.sampling.stop_token_ids or ()):
                ended = True
                if entry:
                    yield chunk({}, logprobs=entry)
                continue
            deltas = _deltas(parser.feed(text.add(token)), completion_id, calls)
            if entry and not deltas:
                deltas = [{}]
            for position, delta in enumerate(deltas):
                yield chunk(delta, logprobs=entry if position == 0 else None)
        for delta in _deltas([*parser.feed(text.rest()), *parser.close()], completion_id, calls):
            yield chunk(delta)
    finally:
        handle.cancel()
        finish = "stop" if ended or text.stopped else "length"
        completion = Completion(state.token_ids, state.logprobs, finish, 0)  # type: ignore[arg-type]
        state.answer = finish_answer(completion, plan, tokenizer)
    yield chunk({}, finish_reason=state.answer.finish_reason)
