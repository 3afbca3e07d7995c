"""The one thread that talks to the engine, and the window in which concurrent requests become one batch.

`EngineWorker(engine, ...).submit(...)` gives a future of completions; `.stream(...)` calls back per token. Requests
that differ only in seed and token limit share a generation batch: sampling is seeded per request, so other
requests in the batch do not change what a request gets. Streams advance one token each in turn, between batches.

`expect(n)` makes the next batch wait for exactly `n` requests: the traffic stage uses it so that batches, and with
them the last bits of floating-point sums, do not depend on timing. Not covered: preemption and token-level
continuous batching across batches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from loopline.inference.engine import Completion, Engine, Sampling


class QueueFull(Exception):
    """More requests wait than the server allows."""


@dataclass
class _Job:
    prompt: tuple[int, ...]
    sampling: Sampling
    future: Future[list[Completion]] = field(default_factory=Future)

    @property
    def key(self) -> Sampling:
        # One batch runs to its longest limit; shorter ones are cut, which makes no difference to a causal model.
        return replace(self.sampling, seed=0, max_new_tokens=1)

    @property
    def order(self) -> tuple[int, tuple[int, ...], int]:
        return self.sampling.seed, self.prompt, self.sampling.max_new_tokens


@dataclass
class StreamHandle:
    """A running stream; `cancel()` stops it before its next token."""

    tokens: Iterator[tuple[int, float]]
    on_token: Callable[[int, float], None]
    on_end: Callable[[BaseException | None], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop producing tokens; `on_end` still runs."""
        self.cancelled = True


def cut(completion: Completion, limit: int) -> Completion:
    """`completion` as it would have been under a smaller token limit."""
    if len(completion.token_ids) <= limit:
        return completion
    return completion.cut(limit, "length")


def split_by_room(jobs: list[_Job], context: int | None) -> list[list[_Job]]:
    """Batches in which the longest prompt and the largest limit fit the context together.

    The engine gives a whole batch the tokens that its longest prompt leaves; without this split, a long prompt would
    cut a short prompt's answer.
    """
    if context is None or not jobs:
        return [jobs] if jobs else []
    batches: list[list[_Job]] = []
    for job in sorted(jobs, key=lambda job: len(job.prompt)):
        limit = max([other.sampling.max_new_tokens for other in batches[-1]] if batches else [0])
        limit = max(limit, job.sampling.max_new_tokens)
        if batches and len(job.prompt) + limit <= context:
            batches[-1].append(job)
        else:
            batches.append([job])
    return [sorted(batch, key=lambda job: job.order) for batch in batches]


class EngineWorker:
    """Owns the engine: every call to it happens in this object's thread."""

    def __init__(
        self,
        engine: Engine,
        max_batch: int = 64,
        window_s: float = 0.005,
        max_queue: int = 512,
        context: int | None = None,
    ) -> None:
        self.engine, self.context = engine, context
        self.batches: list[int] = []
        self._max_batch, self._window, self._max_queue = max_batch, window_s, max_queue
        self._ready = threading.Condition()
        self._waiting: list[_Job] = []
        self._new_streams: list[StreamHandle] = []
        self._streams: list[StreamHandle] = []
        self._expected: int | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Future[list[Completion]]:
        """`sampling.n` completions of `prompt`, seeded by `sampling.seed`. Raises `QueueFull`."""
        job = _Job(tuple(prompt), sampling)
        with self._ready:
            self._admit()
            self._waiting.append(job)
            self._ready.notify_all()
        return job.future

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_token: Callable[[int, float], None],
        on_end: Callable[[BaseException | None], None],
    ) -> StreamHandle:
        """Call `on_token(token_id, logprob)` per token, then `on_end(error or None)`, from the engine's thread."""
        handle = StreamHandle(iter(self._lazy_stream(list(prompt), sampling)), on_token, on_end)
        with self._ready:
            self._admit()
            self._new_streams.append(handle)
            self._ready.notify_all()
        return handle

    def expect(self, count: int | None) -> None:
        """Hold the next batch until exactly `count` requests wait (None: back to the window)."""
        with self._ready:
            self._expected = count
            self._ready.notify_all()

    @property
    def queued(self) -> int:
        """Requests waiting or streaming."""
        with self._ready:
            return len(self._waiting) + len(self._new_streams) + len(self._streams)

    def close(self) -> None:
        """Finish what runs, refuse what waits, end the thread."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        self._thread.join()

    def _admit(self) -> None:
        if self._closed:
            raise RuntimeError("the server is shutting down")
        if len(self._waiting) + len(self._new_streams) + len(self._streams) >= self._max_queue:
            raise QueueFull

    def _lazy_stream(self, prompt: list[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        # A generator body runs at the first `next`, which happens in the worker's thread.
        yield from self.engine.stream(prompt, sampling)

    def _run(self) -> None:
        while True:
            batch = self._collect()
            if batch is None:
                return
            groups: dict[Sampling, list[_Job]] = {}
            for job in batch:
                groups.setdefault(job.key, []).append(job)
            for jobs in groups.values():
                for fitting in split_by_room(sorted(jobs, key=lambda job: job.order), self.context):
                    self._generate(fitting)
            self._advance_streams()

    def _collect(self) -> list[_Job] | None:
        """The next batch (empty when only streams run), or None when closed and idle."""
        with self._ready:
            while not (self._waiting or self._new_streams or self._streams or self._closed):
                self._ready.wait()
            if not self._streams and not self._new_streams:
                self._hold_window()
            self._streams += self._new_streams
            self._new_streams = []
            if self._closed:
                for job in self._waiting:
                    job.future.set_exception(RuntimeError("the server is shutting down"))
                self._waiting = []
                return [] if self._streams else None
            if self._expected is not None and len(self._waiting) < self._expected:
                return []
            size = self._expected if self._expected is not None else self._max_batch
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            if batch:
                self._expected = None
            return [job for job in batch if job.future.set_running_or_notify_cancel()]

    def _hold_window(self) -> None:
        deadline = time.monotonic() + self._window
        while not self._closed and not self._new_streams:
            if self._expected is not None:
                if len(self._waiting) >= self._expected:
                    return
                self._ready.wait()
            else:
                left = deadline - time.monotonic()
                if len(self._waiting) >= self._max_batch or left <= 0:
                    return
                self._ready.wait(left)

    def _generate(self, jobs: list[_Job]) -> None:
        limit = max(job.sampling.max_new_tokens for job in jobs)
        sampling = replace(jobs[0].sampling, max_new_tokens=limit)
        self.batches.append(len(jobs))
        try:
            results = self.engine.generate(
                [list(job.prompt) for job in jobs], sampling, seeds=[job.sampling.seed for job in jobs]
            )
        except Exception as error:
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, completions in zip(jobs, results, strict=True):
            job.future.set_result([cut(completion, job.sampling.max_new_tokens) for completion in completions])

    def _advance_streams(self) -> None:
        running = []
        for stream in self._streams:
            try:
                if stream.cancelled or self._closed:
                    stream.on_end(None if stream.cancelled else RuntimeError("the server is shutting down"))
                    continue
                token = next(stream.tokens, None)
                if token is None:
                    stream.on_end(None)
                    continue
                stream.on_token(*token)
                running.append(stream)
            except Exception as error:
                stream.on_end(error)
        with self._ready:
            self._streams = running
