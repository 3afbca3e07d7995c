"""Readers: a user's folder or file of text, Markdown, HTML, code, JSONL or Parquet becomes documents.

Use: `read_source(SourceConfig(name="notes", path="notes/"))`. Files are visited in sorted order and named by their path
below the source's root, so that a corpus does not depend on where it lies. HTML keeps its main content only
(resiliparse). Bad input raises `UserError` naming file and line before anything is computed from it.

Not covered: PDF and WARC, which need extractors of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loopline.base.errors import UserError
from loopline.corpus.config import SourceConfig
from loopline.corpus.document import CODE_SUFFIXES, Document, make_document

TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown", ".rst", ".text"})
HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
_KIND_OF = (
    dict.fromkeys(TEXT_SUFFIXES, "text")
    | dict.fromkeys(HTML_SUFFIXES, "html")
    | dict.fromkeys(CODE_SUFFIXES, "code")
    | {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
)
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})


def read_source(config: SourceConfig) -> list[Document]:
    """All documents of one user source, capped at `config.megabytes`.

    Raises `UserError` when the path is missing, holds no readable file, or a file in it is broken.
    """
    root = config.path.expanduser()
    if not root.exists():
        raise UserError(
            f"Source {config.name!r}: there is no file or folder {config.path}",
            f"correct `path` of source {config.name!r} in the recipe",
        )
    documents: list[Document] = []
    for path, kind in _files(root, config.kind):
        relative = path.name if path == root else path.relative_to(root).as_posix()
        documents.extend(_read_file(config, path, relative, kind))
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UserError(
            f"Source {config.name!r}: {config.path} holds no text that Loopline reads",
            f"put {', '.join(sorted({*TEXT_SUFFIXES, *HTML_SUFFIXES, '.jsonl', '.parquet'}))} or code files there, "
            "or set `kind` to say what the files are",
        )
    limit = None if config.megabytes is None else int(config.megabytes * 1e6)
    return sample(documents, limit)


def sample(documents: list[Document], limit: int | None) -> list[Document]:
    """Documents of at most `limit` UTF-8 bytes together, chosen by the hash of their ids and given in their order.

    Which documents are chosen does not depend on their order or on chance, and a larger limit keeps the earlier choice.
    """
    if limit is None:
        return documents
    order = sorted(range(len(documents)), key=lambda i: hashlib.sha256(documents[i].id.encode()).digest())
    chosen, total = set(), 0
    for index in order:
        size = len(documents[index].text.encode("utf-8"))
        if total + size <= limit:
            chosen.add(index)
            total += size
    return [documents[index] for index in sorted(chosen)]


def _files(root: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Files to read, sorted, each with the kind that reads it."""
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    for path in paths:
        parts = path.relative_to(root).parts
        if any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in parts):
            continue
        guess = _KIND_OF.get(path.suffix.lower(), "text" if path == root else None)
        if kind == "auto" and guess is not None:
            yield path, guess
        elif kind == guess or (path == root and kind != "auto"):
            yield path, kind


def _read_file(config: SourceConfig, path: Path, relative: str, kind: str) -> Iterator[Document]:
    if kind == "jsonl":
        yield from _read_jsonl(config, path, relative)
    elif kind == "parquet":
        yield from _read_parquet(config, path, relative)
    else:
        text = decode(path.read_bytes())
        if text is None:
            return  # A binary file with a text suffix holds nothing to read.
        yield make_document(config.name, relative, extract_html(text) if kind == "html" else text, config.licence)


def decode(content: bytes) -> str | None:
    """Text of a file: UTF-8 with or without a byte order mark, UTF-16 with one, else Latin-1; None if binary."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:8192]:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def extract_html(html: str) -> str:
    """Main content of a page as text, without navigation, headers and footers."""
    from resiliparse.extract.html2text import extract_plain_text  # Slow to import, and rarely needed.

    return str(extract_plain_text(html, main_content=True, alt_texts=False))


def _read_jsonl(config: SourceConfig, path: Path, relative: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error})", "correct or delete that line") from error
            text = row.get(config.text_field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise UserError(
                    f"{path}, line {number}: no text under the key {config.text_field!r}",
                    f"write objects with that key, or set `text_field` of source {config.name!r}",
                )
            yield _row_document(config, f"{relative}#{number}", text, row)


def _read_parquet(config: SourceConfig, path: Path, relative: str) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})", "write it again or remove it") from error
    names = file.schema_arrow.names
    if config.text_field not in names:
        raise UserError(
            f"{path} has no column {config.text_field!r}; it has {', '.join(names)}",
            f"set `text_field` of source {config.name!r} to the column that holds the text",
        )
    columns = [config.text_field] + [name for name in ("licence", "license", "path") if name in names]
    number = 0
    for batch in file.iter_batches(columns=columns):
        for row in batch.to_pylist():
            number += 1
            text = row[config.text_field]
            if text is None:
                continue
            if not isinstance(text, str):
                raise UserError(
                    f"{path}: column {config.text_field!r} holds {type(text).__name__}, not text",
                    f"set `text_field` of source {config.name!r} to a text column",
                )
            yield _row_document(config, f"{relative}#{number}", text, row)


def _row_document(config: SourceConfig, path: str, text: str, row: dict[str, Any]) -> Document:
    """A row's document. A `path` in the row tells code from prose by its suffix."""
    licence = row.get("licence") or row.get("license")
    if isinstance(row.get("path"), str):
        path = f"{path}/{row['path']}"
    return make_document(config.name, path, text, licence if isinstance(licence, str) else config.licence)
