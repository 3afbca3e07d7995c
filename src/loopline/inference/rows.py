"""What is known of every running row: its settings, its random numbers, and what it has written so far.

Arrays with an entry per slot, so that a step costs a few array operations and Python only for rows that end, or that
have stop texts or a thinking budget. Not covered: keys, values and scores (see `inference.slots`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loopline.base.errors import UserError
from loopline.chat.tokenizer import END
from loopline.inference.completion import Completion, Finish
from loopline.inference.sampling import Draw, Sampling, row_generator
from loopline.inference.stops import StopTexts
from loopline.inference.thinking import ThinkingMarks, Thought, thinking_marks

CHUNK = 128
"""Random numbers of a row that are generated at once."""
ARRAYS = ("count", "room", "uniforms", "ids", "logprobs", "versions", "kind", "special")
"""What `Rows` has an entry of per slot."""


class Settings:
    """`Sampling` with what it means for one tokenizer and vocabulary."""

    def __init__(self, sampling: Sampling, tokenizer: Any, vocab_size: int) -> None:
        self.sampling = sampling
        stops = sampling.stop_token_ids
        if stops is None:
            stops = tuple(getattr(tokenizer, "stop_ids", (END,)))
        wrong = [token for token in stops if not 0 <= token < vocab_size]
        if wrong:
            raise UserError(f"stop_token_ids {wrong} are outside the vocabulary of {vocab_size}", "leave them out")
        self.stops = np.zeros(vocab_size, dtype=bool)
        self.stops[list(stops)] = True
        self.texts = StopTexts(tokenizer, sampling.stop) if sampling.stop else None
        self.marks: ThinkingMarks | None = None
        if sampling.thinking_budget is not None:
            self.marks = thinking_marks(tokenizer, sampling.thinking_end)

    @property
    def draws(self) -> tuple[float, float, int, bool]:
        """Rows that agree in these are sampled together."""
        return self.sampling.temperature, self.sampling.top_p, self.sampling.top_k, self.sampling.keep_sets


@dataclass
class Row:
    """One sample of a prompt, apart from what is in the arrays of `Rows`."""

    key: int
    number: int
    prompt: Sequence[int]
    settings: Settings
    random: np.random.Generator
    room: int
    thought: Thought | None = None
    forced: dict[int, bool] = field(default_factory=dict)
    """Positions that were written by force."""
    kept: list[int] = field(default_factory=list)
    kept_logmass: list[float] = field(default_factory=list)
    kept_sets: list[bytes] = field(default_factory=list)


def new_row(key: int, number: int, prompt: Sequence[int], settings: Settings, seed: int, room: int) -> Row:
    """Sample `number` of a prompt with `seed`, which may take up to `room` tokens."""
    row = Row(key, number, prompt, settings, row_generator(seed, number), room)
    if settings.marks is not None and settings.sampling.thinking_budget is not None:
        row.thought = Thought(prompt, settings.marks, settings.sampling.thinking_budget)
    return row


class Rows:
    """Running rows by slot; the first `running` of `Slots` are in use or gaps."""

    def __init__(self, size: int) -> None:
        self.rows: list[Row | None] = [None] * size
        self.count = np.zeros(size, dtype=np.int64)
        """Tokens written."""
        self.room = np.ones(size, dtype=np.int64)
        self.uniforms = np.zeros((size, CHUNK))
        self.ids = np.zeros((size, CHUNK), dtype=np.int64)
        self.logprobs = np.zeros((size, CHUNK), dtype=np.float32)
        self.versions = np.zeros((size, CHUNK), dtype=np.int64)
        self.kind = np.zeros(size, dtype=np.int64)
        """Number of its settings."""
        self.special = np.zeros(size, dtype=bool)
        """Rows with stop texts or a thinking budget."""
        self.settings: list[Settings] = []
        self.samplings: list[Sampling] = []
        self.stops = np.zeros((0, 0), dtype=bool)
        """For each settings and token whether it ends a row."""
        self.draws = np.zeros(0, dtype=np.int64)
        """For each settings the number in `samplings` of one that is sampled the same way."""

    def kind_of(self, settings: Settings) -> int:
        """The number of `settings`, which get one at their first row."""
        for number, known in enumerate(self.settings):
            if known is settings:
                return number
        self.settings.append(settings)
        self.stops = np.stack([known.stops for known in self.settings])
        draws = list(dict.fromkeys(known.draws for known in self.settings))
        if len(draws) > len(self.samplings):
            self.samplings.append(settings.sampling)
        self.draws = np.array([draws.index(known.draws) for known in self.settings])
        return len(self.settings) - 1

    def seat(self, slot: int, row: Row) -> None:
        """Start `row` in `slot`."""
        self.rows[slot] = row
        self.count[slot], self.room[slot], self.kind[slot] = 0, row.room, self.kind_of(row.settings)
        self.special[slot] = row.thought is not None or row.settings.texts is not None

    def move(self, source: int, target: int) -> None:
        """Row of `source` goes on in `target`."""
        self.rows[target], self.rows[source] = self.rows[source], None
        for name in ARRAYS:
            array = getattr(self, name)
            array[target] = array[source]

    def resize(self, size: int) -> None:
        """Have `size` slots, more than before."""
        self.rows += [None] * (size - len(self.rows))
        for name in ARRAYS:
            array = getattr(self, name)
            setattr(self, name, np.concatenate((array, np.zeros((size - len(array), *array.shape[1:]), array.dtype))))

    def draw_numbers(self, running: int) -> np.ndarray:
        """The next random number of the first `running` rows; that of a gap means nothing."""
        column = self.count[:running] % CHUNK
        for slot in np.nonzero(column == 0)[0].tolist():
            row = self.rows[slot]
            if row is not None:
                size = min(CHUNK, int(self.room[slot] - self.count[slot]))
                self.uniforms[slot, :size] = row.random.random(size)
        return self.uniforms[np.arange(running), column]

    def parts(self, running: int) -> list[tuple[Sampling, slice | np.ndarray]]:
        """Slots of the first `running` rows that are sampled the same way; there must be no gap among them."""
        draws = self.draws[self.kind[:running]]
        first = int(draws[0])
        if bool((draws == first).all()):
            return [(self.samplings[first], slice(None))]
        return [(self.samplings[number], np.nonzero(draws == number)[0]) for number in np.unique(draws).tolist()]

    def stop_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Which of the first rows' tokens end them."""
        ends: np.ndarray = self.stops[self.kind[: len(tokens)], tokens]
        return ends

    def keep(self, running: int, part: slice | np.ndarray, drawn: Draw, sampling: Sampling) -> None:
        """Note what top-k and top-p left the slots of `part`."""
        assert drawn.kept_BV is not None and drawn.kept_logmass_B is not None
        sizes, masses = drawn.kept_BV.sum(-1).tolist(), drawn.kept_logmass_B.tolist()
        sets = np.packbits(drawn.kept_BV.cpu().numpy(), axis=1, bitorder="little") if sampling.keep_sets else None
        slots = np.arange(running)[part].tolist()
        for place, (slot, size, mass) in enumerate(zip(slots, sizes, masses, strict=True)):
            row = self.rows[slot]
            if row is None:
                continue
            row.kept.append(size)
            row.kept_logmass.append(mass)
            if sets is not None:
                row.kept_sets.append(sets[place].tobytes())

    def force(self, tokens: np.ndarray, logprobs: np.ndarray) -> np.ndarray:
        """Replace what rows sampled by what their thinking budget writes; returns where it did."""
        forced = np.zeros(len(tokens), dtype=bool)
        for slot in np.nonzero(self.special[: len(tokens)])[0].tolist():
            row = self.rows[slot]
            if row is None or row.thought is None:
                continue
            token = row.thought.force()
            if token is not None:
                tokens[slot], logprobs[slot], forced[slot] = token, 0.0, True
                row.forced[int(self.count[slot])] = True
                if row.kept:
                    row.kept[-1], row.kept_logmass[-1] = 1, 0.0
            row.thought.add(int(tokens[slot]))
        return forced

    def write(self, tokens: np.ndarray, logprobs: np.ndarray, version: int, stops: np.ndarray) -> list[int]:
        """Append a token to each of the first rows; returns the slots that end. `stops`: which sampled a stop token."""
        running = len(tokens)
        slots, column = np.arange(running), self.count[:running]
        if int(column.max()) >= self.ids.shape[1]:
            for name in ("ids", "logprobs", "versions"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate((array, np.zeros_like(array)), axis=1))
        self.ids[slots, column] = tokens
        self.logprobs[slots, column] = logprobs
        self.versions[slots, column] = version
        column += 1
        return np.nonzero(stops | (column >= self.room[:running]))[0].tolist()

    def ended_by_text(self, running: int) -> dict[int, str]:
        """Slots whose newest token completes a stop text, and which."""
        found = {}
        for slot in np.nonzero(self.special[:running])[0].tolist():
            row = self.rows[slot]
            if row is not None and row.settings.texts is not None:
                text = row.settings.texts.ended(self.ids[slot, : self.count[slot]].tolist())
                if text is not None:
                    found[slot] = text
        return found

    def take(self, slot: int, finish: Finish, stop_text: str | None = None) -> tuple[int, Completion]:
        """The completion of the row in `slot`, which is free from now on, and the row's key."""
        row, count = self.rows[slot], int(self.count[slot])
        assert row is not None
        self.rows[slot], self.special[slot] = None, False
        self.count[slot], self.room[slot] = 0, 1
        versions = self.versions[slot, :count].tolist()
        done = Completion(
            token_ids=self.ids[slot, :count].tolist(),
            logprobs=self.logprobs[slot, :count].tolist(),
            finish=finish,
            policy_version=versions[0] if versions else 0,
            policy_versions=versions,
            forced=[place in row.forced for place in range(count)] if row.forced else [],
            kept=row.kept,
            kept_logmass=row.kept_logmass,
            kept_sets=row.kept_sets,
            stop_text=stop_text,
            number=row.number,
        )
        return row.key, done
