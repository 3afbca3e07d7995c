"""Token shards as training batches: a reader over memory maps and a mixture sampler that is a pure function.

Use: `ShardSet(data_dir).batch(step, rows=32, length=256, seed=0, weights=None)` gives the rows of one optimizer step.
The batch depends on its arguments alone, so resuming a run takes one integer, the step, and nothing is stored on disk.

Which source a row comes from follows Tijdeman's chairman assignment over a period of 4096 rows: at every prefix each
source has had its share to within one row. Which window of the source comes next follows a keyed Feistel
permutation per epoch, so every window comes once before any comes twice, in memory that does not grow with the corpus.

Not covered: writing shards (see `corpus.shards`), masking of attention across documents (see `training.batch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from loopline.base.errors import UserError
from loopline.base.files import read_json

PERIOD = 4096
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def key_of(*parts: int | str) -> int:
    """A 64-bit key from integers and text, the same in every process and on every machine."""
    key = 0x9E3779B97F4A7C15
    for part in parts:
        values = part.encode() if isinstance(part, str) else [part & 0xFFFFFFFF, (part >> 32) & 0xFFFFFFFF]
        for value in [len(values), *values]:
            key = _mix((key + value + 0x9E3779B97F4A7C15) & _MASK)
    return key


def permute(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of range(size) sends `index`: four Feistel rounds, walked until inside the range.

    The walk is short: the Feistel domain is less than four times the range.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for round_number in range(4):
            left, right = right, left ^ (_mix((key + round_number * 0x9E3779B97F4A7C15 + right) & _MASK) & low)
        index = (left << half) | right
        if index < size:
            return index


@lru_cache(maxsize=64)
def assignment(weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The source of each of `PERIOD` rows, and how many rows each source had before each of them.

    Weights become whole counts of the period by largest remainder (a positive weight gets at least one row). The order
    is Tijdeman's (1980): each row goes to the source with the earliest deadline among those not ahead of their share,
    so no prefix is off by as much as one row. Shapes: (PERIOD,) and (PERIOD, sources).
    """
    share = np.asarray(weights, dtype=np.float64)
    exact = share / share.sum() * PERIOD
    counts = np.where(share > 0, np.maximum(1, np.floor(exact)), 0).astype(np.int64)
    while counts.sum() != PERIOD:
        off = exact - counts
        if counts.sum() < PERIOD:
            counts[int(np.argmax(off))] += 1
        else:
            counts[int(np.argmin(np.where(counts > 1, off, np.inf)))] -= 1
    live = np.flatnonzero(counts)
    order = np.empty(PERIOD, dtype=np.int64)
    before = np.zeros((PERIOD, len(share)), dtype=np.int64)
    served = np.zeros(len(share), dtype=np.int64)
    slack = 1.0 - 1.0 / (2 * len(live) - 2) if len(live) > 1 else 0.0
    rate = counts[live] / PERIOD
    for row in range(PERIOD):
        owed = rate * (row + 1) - served[live]
        deadline = np.where(owed >= 1.0 - slack - 1e-12, (slack - owed) / rate, np.inf)
        chosen = live[int(np.argmin(deadline))]
        before[row] = served
        order[row] = chosen
        served[chosen] += 1
    return order, before


class ShardSet:
    """The token shards of a data artifact.

    `data_dir` holds `manifest.json` and `shards/{source}.{train,heldout}.bin`. Raises `UserError` when the manifest
    is missing or a shard's size is not what the manifest says.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = Path(data_dir)
        self.manifest = read_json(self.path / "manifest.json")
        self.dtype = np.dtype(self.manifest.get("dtype", "uint16"))
        self.sources: list[str] = sorted(self.manifest["sources"])
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        for source in self.sources:
            for split in ("train", "heldout"):
                self._maps[source, split] = self._open(source, split)

    def _open(self, source: str, split: str) -> np.ndarray:
        path = self.path / "shards" / f"{source}.{split}.bin"
        tokens = int(self.manifest["sources"][source][f"{split}_tokens"])
        size = path.stat().st_size if path.exists() else -1
        if size != tokens * self.dtype.itemsize:
            raise UserError(
                f"{path} holds {size} bytes where the manifest promises {tokens} tokens of {self.dtype.itemsize} bytes",
                "run the data stage again: the shard was cut or replaced",
            )
        return np.memmap(path, dtype=self.dtype, mode="r") if tokens else np.zeros(0, dtype=self.dtype)

    def check_vocabulary(self, size: int) -> None:
        """Raise `UserError` when a model with `size` embeddings cannot read these tokens."""
        held = int(self.manifest["vocab_size"])
        if held > size:
            raise UserError(
                f"The shards in {self.path} are written with {held} tokens, but the model knows {size}",
                "use the plan, or the base, that was made for this data artifact",
            )

    def tokens(self, source: str, split: str = "train") -> np.ndarray:
        """The whole token stream of one source, read-only."""
        if (source, split) not in self._maps:
            raise UserError(f"{self.path} has no source {source!r}", f"use one of {', '.join(self.sources)}")
        return self._maps[source, split]

    def default_weights(self) -> dict[str, float]:
        """The manifest's weight of each source; they sum to one."""
        return {source: float(self.manifest["sources"][source]["weight"]) for source in self.sources}

    def _weights(self, weights: Mapping[str, float] | None) -> tuple[float, ...]:
        chosen = self.default_weights() if weights is None else dict(weights)
        unknown = sorted(set(chosen) - set(self.sources))
        if unknown:
            raise UserError(
                f"The mixture names sources the data does not have: {', '.join(unknown)}",
                f"use some of {', '.join(self.sources)}",
            )
        values = tuple(chosen.get(source, 0.0) if len(self._maps[source, "train"]) else 0.0 for source in self.sources)
        if any(not 0 <= value < float("inf") for value in values) or sum(values) <= 0:
            raise UserError(
                "The mixture has a negative weight, or no weight on any source with training tokens",
                "give at least one source a positive weight",
            )
        if sum(value > 0 for value in values) > PERIOD // 4:
            raise UserError(f"The mixture has more than {PERIOD // 4} sources", "merge small sources under one name")
        return values

    def locate(self, row: int, length: int, seed: int, weights: Mapping[str, float] | None = None) -> tuple[str, int]:
        """Source and start token of global row number `row`: the sampler itself."""
        return self._locate(row, length, seed, self._weights(weights))

    def _locate(self, row: int, length: int, seed: int, weights: tuple[float, ...]) -> tuple[str, int]:
        order, before = assignment(weights)
        period, slot = divmod(row, PERIOD)
        number = int(order[slot])
        # How many rows of this source came before: whole periods, then this one.
        total = int(before[-1, number]) + int(order[-1] == number)
        served = period * total + int(before[slot, number])
        source = self.sources[number]
        size = len(self._maps[source, "train"])
        windows = -(-size // length)
        epoch, position = divmod(served, windows)
        key = key_of(seed, source, epoch)
        # Each epoch cuts the stream at other places, so a document is not always cut at the same token.
        return source, (permute(position, windows, key) * length + key % length) % size

    def batch(
        self, step: int, rows: int, length: int, seed: int = 0, weights: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """The rows of optimizer step `step`: int64, shape (rows, length + 1); targets are the inputs shifted by one.

        A source is read as a ring, so one shorter than a window is repeated and no token is out of reach.
        """
        chosen = self._weights(weights)
        out = np.empty((rows, length + 1), dtype=np.int64)
        reach = np.arange(length + 1)
        for index in range(rows):
            source, start = self._locate(step * rows + index, length, seed, chosen)
            stream = self._maps[source, "train"]
            if start + length < len(stream):
                out[index] = stream[start : start + length + 1]
            else:
                out[index] = stream[(start + reach) % len(stream)]
        return out

    def heldout_windows(self, source: str, length: int, limit: int | None = None) -> np.ndarray:
        """Up to `limit` windows of a source's held-out stream: int64, shape (n, length + 1), in order.

        Windows overlap by one token, so each token but the first is a target exactly once; the last window is filled
        up with 0 (`<|pad|>`), which is no target. With `limit` the windows are spread evenly over the stream.
        """
        stream = self.tokens(source, "heldout")
        count = -(-(len(stream) - 1) // length) if len(stream) > 1 else 0
        chosen = np.arange(count)
        if limit is not None and limit < count:
            chosen = np.arange(limit) * count // limit
        out = np.zeros((len(chosen), length + 1), dtype=np.int64)
        for index, number in enumerate(chosen):
            piece = stream[number * length : (number + 1) * length + 1]
            out[index, : len(piece)] = piece
        return out

    def heldout_bytes_per_token(self, source: str) -> float:
        """UTF-8 bytes of held-out text per held-out token, which turns nats per token into bits per byte."""
        entry = self.manifest["sources"][source]
        return float(entry["heldout_bytes"]) / max(1, int(entry["heldout_tokens"]))
