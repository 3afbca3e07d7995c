"""Rows of a data file: JSON Lines, JSON, CSV or Parquet, the text forms also gzipped.

    table = read_table(Path("train.jsonl"))        # Table(format, columns, rows)

Every mistake in a file is a `UserError` with its place. Not covered: files that do not fit in memory, folders of files.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import to_json

Row = dict[str, Any]
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Table:
    """A file's rows."""

    name: str
    """The file's name, for messages and the card."""
    format: str
    columns: tuple[str, ...]
    """Every column that some row has, in order of appearance."""
    rows: list[Row]

    def place(self, number: int) -> str:
        """How messages name row `number` (from 0)."""
        return f"{self.name}, row {number + 1}"


def format_of(path: Path) -> str:
    """The format that a file's name says. Raises `UserError` for any other name."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(
            f"{path}: a file that ends in {suffix or 'nothing'!r} is not understood",
            f"use a file that ends in {', '.join(FORMATS)} (the text forms may end in .gz as well)",
        )
    return FORMATS[suffix]


def read_table(path: Path) -> Table:
    """All rows of the file. Raises `UserError` when it is missing, unreadable, damaged or empty."""
    kind = format_of(path)
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}", "check the path given with --data") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder", "give one file") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read", "give yourself the permission to read it") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error})", "write or download the file again") from error
    read = _parquet if kind == "parquet" else _text(kind, path)
    rows = read(content, path)
    if not rows:
        raise UserError(f"{path} holds no rows", "give a file with at least one row")
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    return Table(path.name, kind, tuple(columns), rows)


def _text(kind: str, path: Path) -> Callable[[bytes, Path], list[Row]]:
    parse = {"jsonl": _json_lines, "json": _json, "csv": _csv}[kind]

    def read(content: bytes, path: Path) -> list[Row]:
        try:
            return parse(content.decode("utf-8-sig"), path)
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise UserError(
                f"{path}, line {line}: byte {error.start} is not UTF-8", "save the file as UTF-8"
            ) from error

    return read


def loads(text: str) -> Any:
    """A JSON value that can be written as UTF-8 JSON again. Raises `ValueError`."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a JSON number")

    value = json.loads(text, parse_constant=refuse)
    if "\\ud" in text.lower():
        # Half of a surrogate pair is no character; no file could hold it.
        to_json(value).encode("utf-8")
    return value


def _json_lines(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines: JSON may hold U+2028 and its like inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})", "write one JSON object per line") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: holds {type(row).__name__} instead of an object",
                'write one {"column": value, ...} per line',
            )
        rows.append(row)
    return rows


def _json(text: str, path: Path) -> list[Row]:
    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:
        fix = "fix that place"
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            fix = "the file looks like JSON Lines: name it .jsonl"
        raise UserError(f"{path}: not JSON ({error})", fix) from error
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or any(not isinstance(row, dict) for row in value):
        raise UserError(f"{path} does not hold a list of objects", 'write [{"column": value, ...}, ...]')
    return value


def _csv(text: str, path: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    rows: list[Row] = []
    try:
        for row in reader:
            if "" in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: has {'more' if '' in row else 'fewer'} fields than the header",
                    "quote fields that hold commas, quotes or line breaks",
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise UserError(f"{path}, after line {reader.line_num}: not CSV ({error})", "fix that line") from error
    return rows


def _parquet(content: bytes, path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file, or damaged ({error})", "write the file again") from error
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """A Parquet value as JSON can write it."""
    if isinstance(value, dict):
        # A struct column gives every row every field; those a row lacks are empty.
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
