"""Rows of a small model in lanes: each lane is a batch of its own, decoded on a thread of its own.

    for key, completion in completions(engine, [(0, Request(prompt, Sampling(n=8))), ...], slots=128): ...

The operations of a small model are too short to be divided among threads (`decode_step.step_threads`), so the other
cores decode other rows. At a million parameters on two cores, answers of 38 tokens on average, two lanes gave 1.6 times
the tokens per second for 256 samples at once and 1.3 times for 256 samples, 128 at a time. Lanes of few rows wait for
the interpreter as long as they compute: 128 samples of 15 tokens, most of them done long before the last, took 2 to 44%
longer, so there is a lane for every 128 samples. What a row samples depends on its own seed; lanes change the rounding
of sums as other neighbours do. Not covered: weights that change meanwhile, other devices than the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

import torch

from throughline.compute.threads import can_own_threads
from throughline.inference.completion import Completion, Request
from throughline.inference.decode_step import is_plain, small
from throughline.inference.scheduler import Scheduler
from throughline.model.language_model import LanguageModel

if TYPE_CHECKING:
    from throughline.inference.engine import TorchEngine

MOST = 4
"""Lanes, however many cores there are: they share one interpreter. More than two have not been measured."""
LANE_ROWS = 32
"""Rows at a time for which a lane pays."""
LANE_SAMPLES = 128
"""Samples for which a lane pays: towards their end there are fewer rows than it could hold."""


def lane_count(model: LanguageModel, slots: int, samples: int) -> int:
    """Lanes for so many samples, `slots` at a time."""
    if not (is_plain(model) and small(model) and can_own_threads()):
        return 1
    return max(1, min(MOST, torch.get_num_threads(), slots // LANE_ROWS, samples // LANE_SAMPLES))


def completions(
    engine: TorchEngine, requests: Sequence[tuple[int, Request]], slots: int
) -> Iterator[tuple[int, Completion]]:
    """(Key, completion) of every sample of every request, as they are done, from `slots` rows at a time.

    Neighbours in `requests` are computed together. Raises what a lane raised, when none computes any more; closing the
    iterator ends the lanes after the step they are at.
    """
    lanes = lane_count(engine.model, slots, sum(request.sampling.n for _, request in requests))
    if lanes == 1:
        yield from _decode(engine, requests, slots)
        return
    found: SimpleQueue[tuple[int, Completion] | None] = SimpleQueue()
    closed = Event()

    def work(lane: Sequence[tuple[int, Request]]) -> None:
        try:
            for item in _decode(engine, lane, -(-slots // lanes), closed):
                found.put(item)
        except BaseException:
            closed.set()
            raise
        finally:
            found.put(None)

    with ThreadPoolExecutor(lanes, thread_name_prefix="lanes") as pool:
        running = [pool.submit(work, requests[number::lanes]) for number in range(lanes)]
        try:
            ended = 0
            while ended < lanes:
                item = found.get()
                if item is None:
                    ended += 1
                else:
                    yield item
        finally:
            closed.set()
        for future in running:
            future.result()


def _decode(
    engine: TorchEngine, requests: Sequence[tuple[int, Request]], slots: int, closed: Event | None = None
) -> Iterator[tuple[int, Completion]]:
    """The completions of one batch of `slots` rows, until `closed`."""
    scheduler = Scheduler(engine, slots)
    for key, request in requests:
        scheduler.add(key, request)
    while scheduler.busy and not (closed is not None and closed.is_set()):
        yield from scheduler.step()
