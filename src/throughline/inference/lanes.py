"""Rows of a small model in lanes: each lane is a batch of its own, decoded on a thread of its own.

    for key, completion in completions(engine, [(0, Request(prompt, Sampling(n=8))), ...], slots=128): ...

The operations of a small model are too short to be divided among threads (`decode_step.step_threads`), so the other
cores decode other rows. At a million parameters on two cores, groups of 8, answers of 38 tokens on average, two lanes
gave 1.3 times the tokens per second at 64 and 128 rows and 1.6 times at 256; below that a lane waits for the
interpreter as long as it computes, and there is one. What a row samples depends on its own seed; lanes change the
rounding of sums as other neighbours do. Not covered: weights that change meanwhile, other devices than the CPU.
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
"""Rows for which a lane pays."""


def lane_count(model: LanguageModel, rows: int) -> int:
    """Lanes for `rows` rows at a time."""
    if not (is_plain(model) and small(model) and can_own_threads()):
        return 1
    return max(1, min(MOST, torch.get_num_threads(), rows // LANE_ROWS))


def completions(
    engine: TorchEngine, requests: Sequence[tuple[int, Request]], slots: int
) -> Iterator[tuple[int, Completion]]:
    """(Key, completion) of every sample of every request, as they are done, from `slots` rows at a time.

    Neighbours in `requests` are computed together. Raises what a lane raised, when none computes any more; closing the
    iterator ends the lanes after the step they are at.
    """
    lanes = lane_count(engine.model, min(slots, sum(request.sampling.n for _, request in requests)))
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
