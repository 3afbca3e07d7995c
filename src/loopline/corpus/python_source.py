"""The default corpus: what every Python installation carries, so the whole line runs without a download.

Use: `read_python(PythonConfig())` gives four sources: `python/code` (standard library modules), `python/docstrings`
(their prose, one document per module, and the language reference), `python/readmes` (descriptions of the packages
Loopline needs) and `python/licences` (their licence files). Each is capped; hashes of names decide which documents
fill a cap. Files that vary with the place or the machine (build configuration, Loopline itself) are left out.

Not covered: what packages ship as code; name their folder as a source of your own for that.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopline.corpus.config import PythonConfig
from loopline.corpus.document import Document, make_document
from loopline.corpus.installed import dependencies
from loopline.corpus.readers import decode, sample

_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
)
_PYTHON_LICENCE = "PSF-2.0"


def read_python(config: PythonConfig) -> list[Document]:
    """The documents of the running installation, sorted by source and path."""
    modules = _stdlib_modules()
    code = [make_document("python/code", path, text, _PYTHON_LICENCE) for path, text in modules]
    documents = sample(code, int(config.code_megabytes * 1e6))
    if config.docstring_megabytes > 0:
        prose = [
            make_document("python/docstrings", f"{path}#docstrings", text, _PYTHON_LICENCE)
            for path, text in _docstrings(modules, config.docstring_characters)
        ]
        prose += [
            make_document("python/docstrings", f"reference/{name}.txt", text, _PYTHON_LICENCE)
            for name, text in _language_reference()
        ]
        documents += sample(sorted(prose, key=lambda item: item.path), int(config.docstring_megabytes * 1e6))
    readmes, licences = [], []
    for name, licence, readme, files in _distributions():
        if readme.strip():
            readmes.append(make_document("python/readmes", f"{name}.md", readme, licence))
        licences += [make_document("python/licences", f"{name}/{path}#licence", text, licence) for path, text in files]
    documents += sample(licences, int(config.licence_megabytes * 1e6))
    documents += sample(readmes, int(config.readme_megabytes * 1e6))
    return sorted(documents, key=lambda document: (document.source, document.path))


def _stdlib_modules() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _SKIPPED.intersection(relative.parts) or any(part.startswith("config-") for part in relative.parts):
            continue
        if path.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize")):
            continue
        text = decode(path.read_bytes())
        if text and text.strip():
            modules.append((relative.as_posix(), text))
    return sorted(modules)


def _docstrings(modules: list[tuple[str, str]], shortest: int) -> Iterator[tuple[str, str]]:
    """The docstrings of each module of at least `shortest` characters, in the order of the file."""
    for path, text in modules:
        if '"""' not in text:
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # Templates with a .py suffix are no modules.
        found = [doc for doc in _walk(tree) if len(doc) >= shortest]
        if found:
            yield path, "\n\n".join(found) + "\n"


def _walk(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        yield inspect.cleandoc(first.value.value)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child)


def _language_reference() -> Iterator[tuple[str, str]]:
    """The chapters of the language reference that `help()` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # Some distributions package it apart.
        return
    for name in sorted(topics):
        yield name, inspect.cleandoc(topics[name]) + "\n"


def _distributions() -> Iterator[tuple[str, str, str, list[tuple[str, str]]]]:
    """Name, licence, description and licence files of each dependency, by name."""
    for name, item in dependencies().items():
        metadata: Any = item.metadata  # An email.message.Message, which the type does not say.
        licence = metadata.get("License-Expression") or metadata.get("License") or "unknown"
        licence = licence.strip().splitlines()[0][:60] if licence.strip() else "unknown"
        readme = metadata.get("Description") or str(metadata.get_payload() or "")
        files = []
        for path in sorted(item.files or [], key=str):
            stem = path.name.lower()
            if ".dist-info" in str(path) and stem.startswith(("licen", "copying", "notice")):
                located = Path(str(path.locate()))
                text = decode(located.read_bytes()) if located.is_file() else None
                if text:
                    files.append((path.name if len(path.parts) < 3 else "/".join(path.parts[1:]), text))
        yield name, licence, readme, files
