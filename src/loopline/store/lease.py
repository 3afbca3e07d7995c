"""One process per run directory.

    with Lease(run_dir) as lease:
        lease.beat()

A file lock decides: the system drops it when its owner dies, however it dies, so a killed run blocks nobody.
`lease.json` beside it tells who holds it. Run directories on file systems whose locks do not reach other hosts are
guarded by the heartbeat in that file instead. Not covered: locks on single artifacts; two runs never share a directory.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json

STALE_AFTER = 60.0
"""Seconds without a heartbeat after which another host's lease is taken over."""
BEAT_EVERY = 5.0
"""Seconds between two heartbeats."""


class Lease:
    """Exclusive use of a run directory for as long as the block runs."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.file = run_dir / "lease.json"
        self._handle: int | None = None
        self._beaten = 0.0

    def __enter__(self) -> Lease:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.run_dir / "lease.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise self._refusal() from error
        owner = self._owner()
        fresh = time.time() - float(owner.get("heartbeat", 0)) < STALE_AFTER
        if owner and owner.get("host") != socket.gethostname() and fresh:
            os.close(handle)
            raise self._refusal()
        try:
            self.beat(force=True)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._handle is not None
        self.file.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None

    def beat(self, force: bool = False) -> None:
        """Record that the owner is alive; cheap when called often."""
        now = time.time()
        if force or now - self._beaten >= BEAT_EVERY:
            self._beaten = now
            write_json(self.file, {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": round(now, 1)})

    def _owner(self) -> dict[str, Any]:
        try:
            return read_json(self.file)
        except UserError:
            return {}

    def _refusal(self) -> UserError:
        owner = self._owner()
        who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
        return UserError(
            f"The run directory {self.run_dir} is in use by {who}",
            "wait for it to end, stop it, or give this run a directory of its own with --dir (--out)",
        )


def is_running(run_dir: Path) -> bool:
    """Whether the owner of the run directory is alive: by its process here, by its heartbeat on another host."""
    try:
        owner = read_json(run_dir / "lease.json")
    except UserError:
        return False
    if owner.get("host") != socket.gethostname():
        return time.time() - float(owner.get("heartbeat", 0)) < STALE_AFTER
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
