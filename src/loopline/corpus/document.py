"""The document: one text with its source, path, licence and digest, and its Parquet form.

Use: `make_document(source, path, text, licence)`, `write_documents(path, documents)`, `read_documents(path)`.
Equal documents give equal Parquet bytes. Not covered: reading foreign files (see `readers`).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loopline.base.errors import UserError
from loopline.base.files import write_atomic

# fmt: off
CODE_SUFFIXES = frozenset({
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".kt", ".scala", ".js",
    ".mjs", ".ts", ".tsx", ".jsx", ".rb", ".php", ".swift", ".sh", ".bash", ".sql", ".r", ".jl", ".lua", ".pl", ".hs",
    ".ml", ".zig", ".cs", ".m", ".proto", ".css",
})
# fmt: on
_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "path", "licence", "text", "sha256")])


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `path` is relative to its source's root; `id` is `source:path`; `sha256` is of the UTF-8 text."""

    id: str
    source: str
    path: str
    licence: str
    text: str
    sha256: str

    @property
    def lane(self) -> str:
        """Which rules apply: "synthetic", "code" or "prose"."""
        if self.source.startswith("synthetic/"):
            return "synthetic"
        return "code" if posixpath.splitext(self.path)[1].lower() in CODE_SUFFIXES else "prose"

    def with_text(self, text: str) -> Document:
        """The same document with another text and its digest."""
        return replace(self, text=text, sha256=digest(text))


def digest(text: str) -> str:
    """sha256 (hex) of the UTF-8 bytes; lone surrogates count as their three bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def make_document(source: str, path: str, text: str, licence: str = "unknown") -> Document:
    """A document with its id and digest. Lone surrogates, which no UTF-8 file can hold, become "?"."""
    text = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
    return Document(f"{source}:{path}", source, path, licence, text, digest(text))


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write zstd Parquet with the columns id, source, path, licence, text, sha256."""
    columns = {name: [getattr(document, name) for document in documents] for name in _SCHEMA.names}
    table = pa.table(columns, schema=_SCHEMA)
    write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd", row_group_size=4096))


def read_documents(path: Path) -> list[Document]:
    """Read what `write_documents` wrote, or any Parquet with the same columns.

    Raises `UserError` for a missing file, a file that is not Parquet, a missing column or an empty table.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}", "run the raw stage, which writes it") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({error})", "run the raw stage again") from error
    missing = [name for name in _SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}", "write documents with all six columns")
    rows = table.select(_SCHEMA.names).to_pylist()
    if not rows:
        raise UserError(f"{path} holds no documents", "give the raw stage a source with text in it")
    return [Document(**row) for row in rows]


def count_by_source(documents: Iterable[Document]) -> dict[str, dict[str, int]]:
    """Documents and UTF-8 bytes of each source."""
    counts: dict[str, dict[str, int]] = {}
    for document in documents:
        entry = counts.setdefault(document.source, {"documents": 0, "bytes": 0})
        entry["documents"] += 1
        entry["bytes"] += len(document.text.encode("utf-8"))
    return counts
