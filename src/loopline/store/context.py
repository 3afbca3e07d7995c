"""What a stage function gets to work with: where to write, seeds, metrics, progress.

Everything a stage writes under `out` becomes its artifact; `state` survives a crash and is handed to the next attempt.
Not covered: committing (see `store.store`) and choosing what runs (see `loopline.line`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loopline.base.files import to_json, write_text
from loopline.store.progress import Progress, show_progress


class Metrics:
    """A stage's curve, one JSON line per step in `log/metrics.jsonl`, and its summary for the manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.sinks: list[Callable[[int, Mapping[str, float]], None]] = []
        """Trackers that get a copy of every line (`store.trackers`)."""

    def log(self, step: int, **values: float) -> None:
        """Append one line. Numbers that are not finite are written as null."""
        row = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json({"step": step, **row}) + "\n")
        for sink in self.sinks:
            sink(step, {name: value for name, value in row.items() if value is not None})

    def truncate(self, step: int) -> None:
        """Drop lines of steps at or after `step`: a resumed run writes them again. A torn last line goes too."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] < step:
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def summary(self, **values: Any) -> None:
        """Numbers for the manifest's "metrics"."""
        self.values |= values


@dataclass
class Context:
    """One attempt at one stage."""

    stage: str
    """Name of the stage in the line."""
    out: Path
    """The artifact's directory, still being written; `out / "log"` is for what may differ between equal runs."""
    state: Path
    """The stage's own scratch space; survives a crash, gone once the artifact is committed."""
    seed: int
    """The stage's seed."""
    threads: int = 2
    """Threads for computing."""
    device: str = "cpu"
    """Where to compute."""
    beat: Callable[[], None] = lambda: None
    """Renews the run's lease."""
    metrics: Metrics = field(init=False)
    """The stage's curve and summary."""

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        self.metrics = Metrics(self.out / "log" / "metrics.jsonl")
        self._beaten = 0.0

    def seed_for(self, name: str) -> int:
        """A 63-bit seed of its own for `name`."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:8], "big") >> 1

    def rng(self, name: str) -> np.random.Generator:
        """A random generator of its own for `name`."""
        return np.random.Generator(np.random.Philox(key=self.seed_for(name)))

    def heartbeat(self) -> None:
        """Renew the lease, at most once a second."""
        now = time.monotonic()
        if now - self._beaten >= 1:
            self._beaten = now
            self.beat()

    @contextmanager
    def progress(self, description: str, total: float) -> Iterator[Progress]:
        """A progress bar with ETA on a terminal, a line now and then elsewhere."""
        with show_progress(description, total, self.heartbeat) as bar:
            yield bar
