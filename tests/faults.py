"""Crashes and failing disks at every place where a program changes files.

    for crash in every_fault(action):        # forks once per place

`action` runs in a forked child in which every change to files (open for writing, rename, unlink, mkdir, rmdir, chmod,
truncate, fsync) is counted through the interpreter's audit events. At the k-th the child dies without running
another line, as from SIGKILL, with what it was syncing cut in half; or, for `error`, the call fails. Not covered: what
libraries write outside the interpreter's own calls.
"""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator

DIED, FAILED, FINISHED, BROKEN = 77, 78, 0, 1
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
CHANGES |= {"sqlite3.connect", "sqlite3.connect/handle"}  # Before and after a database is opened.
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def fault_at(k: int, action: Callable[[], object], kind: str) -> bool:
    """Run `action` in a child with a fault at its k-th change; whether it had that many."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _run(k, action, kind)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (DIED, FAILED, FINISHED), f"with a fault at change {k} the action broke: see the traceback above"
    return code != FINISHED


def every_fault(action: Callable[[int], Callable[[], object]], kind: str = "death") -> Iterator[int]:
    """For every k: run `action(k)()` with a fault at its k-th change, then hand out k; ends when none is left."""
    k = 0
    while fault_at(k, action(k), kind):
        yield k
        k += 1
        assert k < 500, "the action does not end"


def _run(k: int, action: Callable[[], object], kind: str) -> None:
    seen = 0
    sync = os.fsync

    def change(handle: int | None = None) -> None:
        nonlocal seen
        seen += 1
        if seen != k + 1:
            return
        if kind == "error":
            raise OSError(errno.EIO, "the disk failed")
        if handle is not None:
            with contextlib.suppress(OSError):  # Opened for reading: its bytes were there before.
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
        os._exit(DIED)

    def fsync(handle: int) -> None:
        change(handle)
        sync(handle)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES or (event == "open" and _writes(arguments)):
            change()

    os.fsync = fsync
    sys.addaudithook(hook)
    try:
        action()
        # `mkdir(exist_ok=True)` and the like put up with a failure.
        code = FAILED if seen > k else FINISHED
    except BaseException:
        code = BROKEN if kind == "death" or seen <= k else FAILED
        if code == BROKEN:
            traceback.print_exc()
            sys.stderr.flush()
    os._exit(code)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & WRITING)
