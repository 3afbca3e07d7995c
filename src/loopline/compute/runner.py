"""Jobs: a command line somewhere, watched from here.

    handle = LocalRunner(log_dir).submit(["python", "-m", "..."], Resources(threads=2))
    code = handle.wait()

`Runner` is the protocol that other executors (torchrun, Ray, Slurm) share; `LocalRunner` starts the command in a
process group of its own on this machine, so that cancelling takes its children along. Not covered: queues, retries.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loopline.base.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What a job asks for."""

    threads: int = 1
    """CPU threads."""
    devices: int = 0
    """Accelerators."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further environment variables."""


class Handle(Protocol):
    """A submitted job."""

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        ...

    def cancel(self) -> None:
        """End it and everything it started."""
        ...

    def logs(self) -> str:
        """What it has written so far."""
        ...


class Runner(Protocol):
    """Something that can run a command line."""

    def submit(self, argv: Sequence[str], resources: Resources) -> Handle:
        """Start `argv`."""
        ...


class LocalHandle:
    """A process group on this machine."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def poll(self) -> int | None:
        return self.process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Exit status once it has ended. Raises `subprocess.TimeoutExpired`."""
        return self.process.wait(timeout)

    def cancel(self, grace: float = 2.0) -> None:
        """SIGTERM to the group, SIGKILL after `grace` seconds."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            until = time.monotonic() + patience
            while self.process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            if self.process.poll() is not None and number == signal.SIGKILL:
                break
        self.process.wait()

    def logs(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


class LocalRunner:
    """Runs jobs on this machine, one log file each."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        self.count = 0

    def submit(self, argv: Sequence[str], resources: Resources) -> LocalHandle:
        """Start `argv` at once. Raises `UserError` when accelerators are asked for or the program cannot be started."""
        if resources.devices:
            raise UserError("The local runner gives out no accelerators", "ask for devices=0, or use another runner")
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log = self.log_dir / f"job-{os.getpid()}-{self.count:03d}.log"
        self.count += 1
        environment = {**os.environ, "OMP_NUM_THREADS": str(resources.threads), **resources.environment}
        try:
            with log.open("wb") as file:
                process = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise UserError(f"There is no program {argv[0]}", "check the command") from error
        except PermissionError as error:
            raise UserError(f"{argv[0]} may not be executed", "make it executable, or check the command") from error
        return LocalHandle(process, log)
