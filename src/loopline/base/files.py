"""Atomic, canonical files: a reader sees the old bytes or the new bytes, never a mixture.

Every writer goes through a temporary file in the same directory, `fsync`, then `os.replace`. JSON is written with
sorted keys so that equal values give equal bytes. Not covered: locking (see `store.lease`).
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from loopline.base.errors import UserError

PARTIAL = ".partial"
"""How the names of files end that are still being written; a killed writer leaves one."""


def write_atomic(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Create or replace `path` with what `write` puts into the binary handle it gets.

    Raises `UserError` when the disk is full; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk holding {path.parent} is full, so {path.name} was not written; nothing finished was lost",
                "free some space and run the same command again: it continues where it stopped",
            ) from error
        raise
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""

    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_atomic(path, write)


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Canonical JSON: sorted keys, no NaN, text kept as UTF-8."""
    return json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented by two, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line, atomically."""
    write_atomic(path, lambda file: file.writelines((to_json(row) + "\n").encode("utf-8") for row in rows))


def read_json(path: Path) -> Any:
    """Read one JSON value. Raises `UserError` naming file, line and column when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}", "check the path, or run the stage that writes it") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})", "fix that line"
        ) from error


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value per line. Raises `UserError` naming file and line for a bad line."""
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: not JSON ({error.msg})", "write one JSON value per line"
                    ) from error
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}", "check the path, or run the stage that writes it") from error
    return rows
