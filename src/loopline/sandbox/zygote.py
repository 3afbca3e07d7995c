"""The process that forks one fresh child per job, so that running a few lines of code costs milliseconds.

Started by path, `python -S -s -P -B zygote.py`, by `runner.SandboxPool`, which talks to it over its stdin and stdout;
it imports the standard library only, so nothing of the caller (torch, threads, file handles) is in it.

It writes one byte "R" when ready. Request: 4-byte length, then JSON {"source", "entry", "calls", "seconds",
"memory_mb", "trusted"}. Reply: 4-byte length, JSON {"end", "seconds", "bytes"}, then that many bytes of what the child
wrote: one JSON line per call. The child's lines are passed on unread. A child may forge them, which gains nothing:
expected values never enter this process.
Not covered: deciding whether a value is right.
"""

from __future__ import annotations

# The modules of the second block are here for the code under test, which can open no files to import them.
# isort: off
import ctypes
import gc
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import ast  # noqa: F401
import bisect  # noqa: F401
import cmath  # noqa: F401
import collections  # noqa: F401
import copy  # noqa: F401
import dataclasses  # noqa: F401
import datetime  # noqa: F401
import decimal  # noqa: F401
import enum  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import hashlib  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import math  # noqa: F401
import operator  # noqa: F401
import random  # noqa: F401
import re  # noqa: F401
import statistics  # noqa: F401
import string  # noqa: F401
import textwrap  # noqa: F401
import typing  # noqa: F401
# isort: on

try:
    import resource
except ImportError:  # Windows has no resource limits
    resource = None  # type: ignore[assignment]

MAX_OUTPUT = 1_000_000
MAX_STDOUT = 10_000
MAX_DEPTH = 40
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
SECCOMP_ALLOW, SECCOMP_EPERM = 0x7FFF0000, 0x00050001
# What pure computation needs: memory, clocks, writing to the pipe, leaving. (architecture, system call numbers)
SYSTEM_CALLS = {
    # read write close fstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield
    # mremap madvise nanosleep getpid exit gettimeofday sigaltstack gettid futex clock_gettime clock_nanosleep
    # exit_group getrandom
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 35, 39, 60, 96, 131, 186, 202, 228, 230, 231, 318),
    ),
    "aarch64": (
        0xC00000B7,
        (57, 62, 63, 64, 73, 80, 93, 94, 98, 101, 113, 115, 124, 132, 134, 135, 139, 169, 172, 178, 214, 215, 216, 222)
        + (226, 233, 278),
    ),
}
BLOCKED_EVENTS = (
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "shutil.",
    "pty.",
    "signal.",
    "webbrowser.",
    "fcntl.",
)


def system_call_filter() -> bytes | None:
    """A seccomp program that answers EPERM to every system call not listed for this machine; None where none exists."""
    known = SYSTEM_CALLS.get(os.uname().machine) if sys.platform == "linux" else None
    if known is None:
        return None
    architecture, numbers = known
    load, equal, give = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, SECCOMP_EPERM), (load, 0, 0, 0)]
    for index, number in enumerate(numbers):
        program.append((equal, len(numbers) - index, 0, number))
    program += [(give, 0, 0, SECCOMP_EPERM), (give, 0, 0, SECCOMP_ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in program)


def prctl(option: int, *arguments: Any) -> bool:
    """Linux `prctl`; False where it fails or does not exist."""
    if LIBC is None:
        return False
    return bool(LIBC.prctl(option, *(arguments + (0,) * (4 - len(arguments)))) == 0)


LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if LIBC is not None:
    # Without this, addresses would be passed as 32-bit integers.
    LIBC.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
FILTER = system_call_filter()


def confine(seconds: float, memory_mb: int, base_bytes: int, trusted: bool) -> None:
    """Limits of the child: they are set once and cannot be lifted again."""
    if resource is not None:
        cpu = int(seconds) + 1
        memory = base_bytes + memory_mb * 2**20
        limits = [
            (resource.RLIMIT_CPU, cpu, cpu + 1),
            (resource.RLIMIT_FSIZE, 0, 0),
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_NOFILE, 64, 64),
            (resource.RLIMIT_STACK, 16 * 2**20, 16 * 2**20),
        ]
        if sys.platform == "linux":
            limits += [(resource.RLIMIT_AS, memory, memory), (resource.RLIMIT_NPROC, 0, 0)]
        for which, soft, hard in limits:
            resource.setrlimit(which, (soft, hard))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if trusted or FILTER is None:
        return
    code = ctypes.create_string_buffer(FILTER, len(FILTER))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(FILTER) // 8, ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program))


class Captured:
    """Stands in for stdout and keeps its first characters."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.room = MAX_STDOUT

    def write(self, text: str) -> int:
        if self.room > 0:
            self.parts.append(text[: self.room])
            self.room -= len(text)
        return len(text)

    def flush(self) -> None:
        return

    def take(self) -> str:
        text, self.parts = "".join(self.parts), []
        return text


def encode(value: Any, depth: int = 0) -> Any:
    """Builtin values of exactly builtin types as tagged JSON; `TypeError` for anything else, subclasses included."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        if value.bit_length() > 4096:
            raise TypeError("an integer of more than 4096 bits")
        return value
    if depth > MAX_DEPTH:
        raise TypeError("a value nested too deeply")
    if kind is list or kind is tuple:
        return ["l" if kind is list else "t", *(encode(item, depth + 1) for item in value)]
    if kind is set or kind is frozenset:
        return ["s", *(encode(item, depth + 1) for item in value)]
    if kind is dict:
        return ["d", *([encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items())]
    raise TypeError(f"a {kind.__name__}, which is not a builtin value")


def child(request: dict[str, Any], result: int, base_bytes: int) -> None:
    """Run the job and write one line per call to the descriptor `result`. Never returns."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.dup2(result, 3)
    os.closerange(4, 256)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    trusted = bool(request["trusted"])
    # Kept in locals: code under test may replace any global it reaches.
    dumps, write, leave, value_of = json.dumps, os.write, os._exit, encode
    blocked: list[str] = []
    captured: Any = Captured()
    sys.stdout = sys.stderr = captured
    confine(request["seconds"], request["memory_mb"], base_bytes, trusted)

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(BLOCKED_EVENTS):
            # The compiler looks for the file of a source that it cannot read.
            own = event == "open" and arguments[:1] in (("<solution>",), ("<test>",), ("<setup>",))
            if len(blocked) < 20 and not own:
                blocked.append(event)
            raise PermissionError(f"{event} is not allowed here")

    def send(status: str, value: Any = None, error: str = "") -> None:
        line = {"status": status, "value": value, "error": error[:500], "stdout": captured.take(), "blocked": blocked}
        data = dumps(line).encode("ascii") + b"\n"
        while data:
            data = data[write(3, data) :]

    def attempt(run: Callable[[], Any]) -> tuple[str, Any, str]:
        try:
            return "ok", run(), ""
        except MemoryError:
            return "oom", None, "MemoryError"
        except BaseException as error:  # SystemExit included: leaving is not passing
            try:
                text = str(error)
            except BaseException:
                text = ""
            return "error", None, f"{type(error).__name__}: {text}"

    if not trusted:
        # A module that is not loaded yet is plainly missing, rather than an attempt to read files.
        sys.path, sys.path_hooks = [], []
        sys.addaudithook(guard)
    module = sys.modules["solution"] = type(sys)("solution")  # dataclasses look their module up by name
    namespace: dict[str, Any] = module.__dict__
    status, _, error = attempt(lambda: exec(compile(request["source"], "<solution>", "exec"), namespace))
    entry = namespace.get(request["entry"])
    if status == "ok" and not callable(entry):
        status, error = "error", f"NameError: there is no function {request['entry']}"
    for call in request["calls"]:
        value = None
        if entry is not None and status == "ok":
            status_of_call, returned, error_of_call = attempt(lambda call=call: entry(*call))  # type: ignore[misc]
            if status_of_call == "ok":
                status_of_call, value, error_of_call = attempt(lambda returned=returned: value_of(returned))  # type: ignore[misc]
            send(status_of_call, value, error_of_call)
        else:
            send(status, None, error)
    leave(0)


def run(request: dict[str, Any], base_bytes: int) -> tuple[dict[str, Any], bytes]:
    """Fork, wait within the time limit, kill whatever is left. Gives the reply and the child's bytes."""
    reading, writing = os.pipe()
    started = time.monotonic()
    try:
        pid = os.fork()
    except OSError:
        # The machine's failure, which must not look like the job's.
        os.close(reading)
        os.close(writing)
        return {"end": "no process", "seconds": 0.0, "bytes": 0}, b""
    if pid == 0:
        try:
            child(request, writing, base_bytes)
        finally:
            os._exit(70)
    os.close(writing)
    data, end = bytearray(), "exit"
    deadline = started + request["seconds"]
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(0, 0)  # the caller's end closing, nothing else
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            end = "timeout"
            break
        events = poll.poll(min(left, 1.0) * 1000)
        if any(fd == 0 for fd, _ in events) or os.getppid() != PARENT:
            kill_children(pid)
            os._exit(0)
        if any(fd == reading for fd, _ in events):
            chunk = os.read(reading, 65536)
            if not chunk:
                break
            data += chunk
            if len(data) > MAX_OUTPUT:
                end = "output"
                break
    os.close(reading)
    seconds = time.monotonic() - started
    status = kill_children(pid)
    if end == "exit" and os.WIFSIGNALED(status):
        end = f"signal {os.WTERMSIG(status)}"
    return {"end": end, "seconds": seconds, "bytes": len(data)}, bytes(data)


def kill_children(pid: int) -> int:
    """Kill the child, its group and, where forking was possible, everything descended from it. Gives its status."""
    result = 0
    for _ in range(10_000):
        for kill in (lambda: os.killpg(pid, signal.SIGKILL), lambda: os.kill(pid, signal.SIGKILL)):
            try:
                kill()
            except (ProcessLookupError, PermissionError):
                continue
        for orphan in orphans():
            try:
                os.kill(orphan, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            found, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return result
        if found == pid:
            result = status
    return result


def orphans() -> list[int]:
    """Process ids whose parent is this process (a subreaper inherits what its children leave behind)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(text) for text in file.read().split()]
    except OSError:
        return []


def read_exactly(count: int) -> bytes:
    """`count` bytes from the caller; leaves when the caller is gone."""
    data = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while len(data) < count:
        if not poll.poll(1000):
            if os.getppid() != PARENT:
                os._exit(0)
            continue
        chunk = os.read(0, count - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data


def write_all(data: bytes) -> None:
    """All bytes to the caller."""
    while data:
        data = data[os.write(1, data) :]


def base_memory() -> int:
    """Bytes of address space this process has before any job."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 64 * 2**20


def main() -> None:
    """Serve jobs until the caller closes the pipe."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()
    base = base_memory()
    write_all(b"R")
    while True:
        (length,) = struct.unpack("<I", read_exactly(4))
        reply, data = run(json.loads(read_exactly(length)), base)
        head = json.dumps(reply).encode("ascii")
        write_all(struct.pack("<I", len(head)) + head + data)


PARENT = os.getppid()
if __name__ == "__main__":
    main()
