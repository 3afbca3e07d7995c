"""Continuous batching: waiting rows take the slots of finished ones at once, prompts are computed once per group.

    scheduler = Scheduler(engine, slots=64)
    scheduler.add(key, Request(prompt, Sampling(n=8)))
    while scheduler.busy:
        for key, completion in scheduler.step(): ...

A step samples one token for every running row. What a row samples depends on its prompt, settings and seed alone;
neighbours change the rounding of sums and nothing else. Weights may be changed between steps: keys and values that are
there stay, later tokens carry the new version. Not covered: recomputing keys after a change of weights, preemption.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from loopline.chat.tokenizer import Tokenizer
from loopline.compute.team import Team
from loopline.compute.threads import own_threads
from loopline.inference.completion import Completion, Request
from loopline.inference.decode_step import decode_step, step_threads
from loopline.inference.rows import Rows, Settings, new_row
from loopline.inference.sampling import Sampling, Scratch, draw
from loopline.inference.slots import Slots
from loopline.model.cache import KeyValueCache
from loopline.model.language_model import LanguageModel

PREFILL_TOKENS = 8192
"""Tokens of prompts computed at once, padding included."""
AHEAD = 8
"""Prompts computed at once, if so many wait, so that a slot that comes free finds its row ready."""


class ModelHolder(Protocol):
    """What is asked of the engine whose model runs."""

    model: LanguageModel
    tokenizer: Tokenizer
    version: int
    """Version of the weights."""
    loads: int
    """Times that the weights were replaced."""

    def room(self, prompt: Sequence[int], sampling: Sampling, name: str = "The prompt") -> int:
        """Tokens that may follow `prompt`."""
        ...


@dataclass
class _Group:
    """A prompt whose samples do not all have a slot yet."""

    key: int
    request: Request
    seed: int
    settings: Settings
    room: int
    following: int = 0
    """Number of the sample that gets the next slot."""

    @property
    def left(self) -> int:
        return self.request.sampling.n - self.following


@dataclass
class _Ready:
    """A group whose prompt is computed: a row of a prefilled batch."""

    group: _Group
    row: int
    cache: KeyValueCache
    logits: Tensor
    weights: int
    """Number of the weights it was computed with."""


class Scheduler:
    """Rows waiting and running over an engine's model."""

    def __init__(self, engine: ModelHolder, slots: int) -> None:
        self.engine, self.size = engine, slots
        self.waiting: deque[_Group] = deque()
        self.ready: deque[_Ready] = deque()
        self.settings: dict[Sampling, Settings] = {}
        self.slots: Slots | None = None
        self.rows = Rows(0)
        self.scratch = Scratch(engine.model.config.vocab_size)
        self.threads = step_threads(engine.model)
        self.team = Team(torch.get_num_threads())
        self.limit = 1
        """Positions of the longest row there may be."""
        self.unseated = 0
        """Rows waiting."""
        self.gaps: list[int] = []
        """Slots below `slots.running` whose row is done."""
        self.newest: list[tuple[int, float]] = []
        """Token and log-prob that each slot got in the last step."""

    def add(self, key: int, request: Request) -> None:
        """Queue a request; its completions come back under `key`. Raises `UserError` for a prompt that does not fit."""
        sampling = request.sampling
        room = self.engine.room(request.prompt, sampling, f"Prompt {key}")
        if sampling not in self.settings:
            vocabulary = self.engine.model.config.vocab_size
            self.settings[sampling] = Settings(sampling, self.engine.tokenizer, vocabulary)
        seed = sampling.seed if request.seed is None else request.seed
        self.limit = max(self.limit, len(request.prompt) + room)
        self.unseated += sampling.n
        self.waiting.append(_Group(key, request, seed, self.settings[sampling], room))

    @property
    def active(self) -> int:
        """Rows running."""
        return 0 if self.slots is None else self.slots.running - len(self.gaps)

    @property
    def busy(self) -> bool:
        """Whether rows run or wait."""
        return bool(self.waiting or self.ready or self.active)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion]]:
        """One token for every running row; the completions that it ended, by key."""
        with own_threads(self.threads):
            return self._step()

    def _step(self) -> list[tuple[int, Completion]]:
        slots = self._room()
        seats = min(self.unseated, self.size - self.active)
        # Gaps that are taken now stay; the step computes nothing of use in them, and copies nothing.
        moves, self.gaps = slots.close_gaps(self.gaps, seats)
        for source, target in moves:
            self.rows.move(source, target)
        if self.active:
            self.compute(slots)
        self._seat(slots, seats)
        return self._sample(slots)

    def interrupt(self) -> list[tuple[int, Completion]]:
        """Stop everything: what running rows have so far, as "interrupted"; what waits is dropped."""
        self.waiting.clear()
        self.ready.clear()
        self.unseated = 0
        found = [slot for slot, row in enumerate(self.rows.rows) if row is not None]
        done = [self.rows.take(slot, "interrupted") for slot in found]
        self.slots, self.rows, self.gaps = None, Rows(0), []
        return done

    def _room(self) -> Slots:
        """Slots for all rows, and positions for the longest request, made anew when requests came that need more."""
        model, old = self.engine.model, self.slots
        rows, limit = min(self.size, self.unseated + self.active), self.limit
        if old is not None and rows <= old.rows and limit <= old.limit:
            return old
        if old is not None:
            limit, rows = max(limit, old.limit), max(rows, old.rows)
        slots = Slots(model, rows, limit)
        self.rows.resize(slots.rows)
        if old is not None and old.running:
            running = list(range(old.running))
            slots.seat(running, old.cache, running, old.logits)
            slots.running = old.running
            slots.at[: old.running], slots.tokens[: old.running] = old.at[: old.running], old.tokens[: old.running]
        self.slots, self.compute = slots, decode_step(model, slots.rows, self.team)
        return slots

    def _seat(self, slots: Slots, seats: int) -> None:
        """Assign `seats` waiting rows to the gaps, and then to the slots after the running ones."""
        places = (self.gaps + list(range(slots.running, slots.rows)))[:seats]
        self.gaps = []
        if places:
            slots.running = max(slots.running, places[-1] + 1)
        while places:
            self._prefill(len(places))
            batch = self.ready[0]
            into: list[int] = []
            source: list[int] = []
            # All rows of one prefilled batch move in one copy.
            while len(into) < len(places) and self.ready and self.ready[0].cache is batch.cache:
                item, group = self.ready[0], self.ready[0].group
                prompt = group.request.prompt
                for slot in places[len(into) : len(into) + group.left]:
                    row = new_row(group.key, group.following, prompt, group.settings, group.seed, group.room)
                    self.rows.seat(slot, row)
                    slots.at[slot] = len(prompt)
                    into.append(slot)
                    source.append(item.row)
                    group.following += 1
                    self.unseated -= 1
                if not group.left:
                    self.ready.popleft()
            slots.seat(into, batch.cache, source, batch.logits)
            places = places[len(into) :]

    def _prefill(self, rows: int) -> None:
        """Have the prompt of the next row computed, with the weights of now; with it some more, for `rows` rows."""
        now = self.engine.loads
        stale = [item.group for item in self.ready if item.weights != now]
        if stale:
            self.ready.clear()
            self.waiting.extendleft(reversed(stale))
        if self.ready:
            return
        groups: list[_Group] = []
        longest = covered = 0
        while self.waiting and (covered < rows or len(groups) < AHEAD):
            longest = max(longest, len(self.waiting[0].request.prompt))
            if groups and longest * (len(groups) + 1) > PREFILL_TOKENS:
                break
            groups.append(self.waiting.popleft())
            covered += groups[-1].left
        cache, logits = self.compute.prefill([group.request.prompt for group in groups])
        self.ready.extend(_Ready(group, row, cache, logits, now) for row, group in enumerate(groups))

    def _sample(self, slots: Slots) -> list[tuple[int, Completion]]:
        """Sample a token for every running row, keep it, and end the rows that it ends."""
        running, rows = slots.running, self.rows
        uniforms = rows.draw_numbers(running)
        tokens = np.zeros(running, dtype=np.int64)
        logprobs = np.zeros(running, dtype=np.float32)
        for sampling, part in rows.parts(running):
            logits, numbers = slots.logits[:running], torch.from_numpy(uniforms).to(slots.logits.device)
            if not isinstance(part, slice):
                index = torch.from_numpy(part).to(logits.device)
                logits, numbers = logits[index], numbers[index]
            drawn = draw(logits, sampling, numbers, self.scratch, self.team)
            tokens[part], logprobs[part] = drawn.tokens_B.cpu().numpy(), drawn.logprobs_B.cpu().numpy()
            if drawn.kept_BV is not None:
                rows.keep(running, part, drawn, sampling)
        forced = rows.force(tokens, logprobs)
        stops = rows.stop_tokens(tokens) & ~forced
        ended = rows.write(tokens, logprobs, self.engine.version, stops)
        self.newest = list(zip(tokens.tolist(), logprobs.tolist(), strict=True))
        slots.at[:running] += rows.count[:running] > 1
        slots.tokens[:running] = tokens
        texts = rows.ended_by_text(running)
        done = []
        for slot in sorted({*ended, *texts}):
            text = None if stops[slot] else texts.get(slot)
            done.append(rows.take(slot, "stop" if stops[slot] or text is not None else "length", text))
            slots.vacate(slot)
            self.gaps.append(slot)
        return done
