"""Run small untrusted functions: a pool of zygotes, each forking one confined child per job.

    with SandboxPool(workers=2, seconds=2.0, memory_mb=256) as pool:
        results = pool.run("def f(x): return x + 1", "f", [(1,), (2,)])      # [Result("ok", 2, ...), ...]

The caller may have imported torch and run threads: zygotes are started with `subprocess`, and no signal handler or
alarm is set here. Nothing a job does, be it looping, forking, eating memory, exiting or killing its worker, delays
another job beyond its own limit or changes another job's result. Not covered: code that must read files or reach the
network; such a call fails inside the job.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "oom", "crashed", "unavailable"]
STATUSES = ("ok", "error", "oom")
ZYGOTE = Path(__file__).with_name("zygote.py")
GRACE = 10.0
"""Seconds beyond a job's own limit after which its worker is taken for dead."""


@dataclass(frozen=True)
class Result:
    """What one call gave.

    "unavailable" alone says nothing about the code: the sandbox itself failed twice. Every other status is the code's
    own doing.
    """

    status: Status
    value: Any = None
    stdout: str = ""
    seconds: float = 0.0
    """Seconds of the whole job."""
    error: str = ""
    """Type and text of the exception, or what happened."""
    blocked: tuple[str, ...] = ()
    """Audit events that were refused, such as "open" or "os.fork"."""


@dataclass(frozen=True)
class Job:
    """One source, one function of it, and the arguments of each call."""

    source: str
    entry: str
    calls: Sequence[Sequence[Any]]
    """Arguments of each call, JSON values."""
    seconds: float | None = None
    """Wall time for all calls together; None is the pool's."""
    trusted: bool = False
    """Code of the recipe's owner: may read files (so import any standard module); limits stay."""
    memory_mb: int | None = None
    """Memory beyond the worker's own; None is the pool's."""


class BadReply(Exception):
    """A child wrote something that is not a result."""


def decode(value: Any) -> Any:
    """The value that `zygote.encode` wrote. Raises `BadReply`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise BadReply
    tag, *items = value
    try:
        if tag == "d":
            return {decode(key): decode(item) for key, item in items}
        decoded = [decode(item) for item in items]
        if tag == "l":
            return decoded
        if tag == "t":
            return tuple(decoded)
        if tag == "s":
            return frozenset(decoded)
    except (TypeError, ValueError) as error:
        raise BadReply from error
    raise BadReply


def same(value: Any, expected: Any) -> bool:
    """Equality of builtin values: no bool for an int, no int for a float, a tuple counts as the list JSON can write."""
    if isinstance(expected, list):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(expected)
            and all(same(a, b) for a, b in zip(value, expected, strict=True))
        )
    if type(value) is not type(expected):
        return False
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in expected)
    if isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
    return bool(value == expected)


class _Worker:
    """One zygote and the job it is running."""

    def __init__(self) -> None:
        # -P -s -S instead of -I, which would also ignore the fixed hash seed of the otherwise empty environment.
        command = [sys.executable, "-S", "-s", "-P", "-B", str(ZYGOTE)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
            close_fds=True,
            bufsize=0,
        )
        self.ready = False
        self.job: int | None = None
        self.deadline = 0.0
        self.received = bytearray()

    def send(self, number: int, request: dict[str, Any]) -> None:
        """Give it a job. Raises `OSError` when the worker is gone."""
        assert self.process.stdin is not None
        data = json.dumps(request).encode("ascii")
        self.job, self.received = number, bytearray()
        self.deadline = time.monotonic() + request["seconds"] + GRACE
        rest = memoryview(struct.pack("<I", len(data)) + data)
        while rest:
            rest = rest[self.process.stdin.write(rest) or 0 :]

    def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """Take what has arrived; the reply once it is whole. Raises `EOFError` when the worker is gone."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        if not chunk:
            raise EOFError
        if not self.ready:
            self.ready, chunk = True, chunk[1:]
        self.received += chunk
        if len(self.received) < 4:
            return None
        (length,) = struct.unpack_from("<I", self.received)
        if len(self.received) < 4 + length:
            return None
        head = json.loads(self.received[4 : 4 + length])
        if len(self.received) < 4 + length + head["bytes"]:
            return None
        return head, bytes(self.received[4 + length :])

    def close(self) -> None:
        """End the zygote; its children die with it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class SandboxPool:
    """A few zygotes; safe to use from several threads, one batch at a time."""

    def __init__(self, workers: int = 2, seconds: float = 2.0, memory_mb: int = 256) -> None:
        if workers < 1 or seconds <= 0 or memory_mb < 16:
            raise ValueError("a sandbox needs workers >= 1, seconds > 0 and memory_mb >= 16")
        self.size, self.seconds, self.memory_mb = workers, seconds, memory_mb
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, source: str, entry: str, calls: Sequence[Sequence[Any]]) -> list[Result]:
        """One result per call of `entry`, in order."""
        return self.map([Job(source, entry, calls)])[0]

    def map(self, jobs: Sequence[Job]) -> list[list[Result]]:
        """Results of every job, in order, all workers busy at once. Raises `TypeError` for calls that are not JSON."""
        with self._lock:
            if os.getpid() != self._owner:  # a fork of the caller must not share its pipes
                self._workers, self._owner = [], os.getpid()
            try:
                return self._map(jobs)
            except BaseException:
                # An interrupted batch leaves replies in the pipes: start afresh next time.
                self._close()
                raise

    def close(self) -> None:
        """End every worker. The pool starts new ones if it is used again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if os.getpid() == self._owner:
            for worker in self._workers:
                worker.close()
        self._workers = []

    def _request(self, job: Job) -> dict[str, Any]:
        return {
            "source": job.source,
            "entry": job.entry,
            "calls": [list(call) for call in job.calls],
            "seconds": job.seconds or self.seconds,
            "memory_mb": job.memory_mb or self.memory_mb,
            "trusted": job.trusted,
        }

    def _map(self, jobs: Sequence[Job]) -> list[list[Result]]:
        results: list[list[Result]] = [[] for _ in jobs]
        failures: dict[int, list[str]] = {}
        waiting = deque(number for number, job in enumerate(jobs) if job.calls)
        while len(self._workers) < min(self.size, len(waiting)):
            self._workers.append(_Worker())
        idle = list(self._workers)
        busy: list[_Worker] = []

        def lost(worker: _Worker, why: str) -> None:
            """Replace a dead worker; try its job once more, then settle it."""
            number = worker.job
            self._workers.remove(worker)
            worker.close()
            fresh = _Worker()
            self._workers.append(fresh)
            idle.append(fresh)
            if number is None:
                return
            seen = failures.setdefault(number, [])
            seen.append(why if worker.ready else "never started")
            if len(seen) < 2:
                waiting.appendleft(number)
                return
            # Two fresh workers died under it: the job's doing. Any other pair of failures: nobody knows.
            status: Status = "crashed" if set(seen) == {"died"} else "unavailable"
            error = f"two workers {' then '.join(seen)} on this job"
            results[number] = [Result(status, error=error) for _ in jobs[number].calls]

        while waiting or busy:
            while waiting and idle:
                worker, number = idle.pop(), waiting.popleft()
                try:
                    worker.send(number, self._request(jobs[number]))
                    busy.append(worker)
                except OSError:
                    lost(worker, "died")
            with selectors.DefaultSelector() as selector:
                for worker in busy:
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                timeout = max(0.0, min((worker.deadline for worker in busy), default=0.0) - time.monotonic())
                ready = [key.data for key, _ in selector.select(timeout)]
            for worker in ready:
                try:
                    reply = worker.receive()
                except EOFError:
                    busy.remove(worker)
                    lost(worker, "died")
                    continue
                if reply is not None:
                    assert worker.job is not None
                    results[worker.job] = read_results(jobs[worker.job], *reply)
                    worker.job = None
                    busy.remove(worker)
                    idle.append(worker)
            for worker in [w for w in busy if w.deadline < time.monotonic()]:
                busy.remove(worker)
                lost(worker, "fell silent")
        return results


def read_results(job: Job, head: dict[str, Any], data: bytes) -> list[Result]:
    """One result per call from what the child wrote, which is not to be trusted."""
    seconds = head["seconds"]
    results: list[Result] = []
    for line in data.split(b"\n")[: len(job.calls)]:
        try:
            row = json.loads(line)
            if row["status"] not in STATUSES:
                raise BadReply
            value = decode(row["value"]) if row["status"] == "ok" else None
            blocked = tuple(sorted({str(event)[:40] for event in row["blocked"]}))
            results.append(
                Result(row["status"], value, str(row["stdout"])[:10_000], seconds, str(row["error"])[:500], blocked)
            )
        except (ValueError, TypeError, KeyError, RecursionError, BadReply):
            break
    end = head["end"]
    status: Status = "timeout" if end in ("timeout", "signal 24") else "crashed"
    if end == "no process":
        status = "unavailable"
    error = {"timeout": "ran past its time limit", "signal 24": "ran past its time limit", "output": "wrote too much"}
    missing = Result(status, seconds=seconds, error=error.get(end, f"ended without a result ({end})"))
    return results + [missing] * (len(job.calls) - len(results))
