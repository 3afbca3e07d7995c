"""The default corpus on the real installation."""

import ast
import sysconfig
from pathlib import Path

from loopline.corpus.config import PythonConfig
from loopline.corpus.document import count_by_source
from loopline.corpus.python_source import read_python

SMALL = PythonConfig(code_megabytes=0.3, docstring_megabytes=0.2, readme_megabytes=0.1, licence_megabytes=0.05)


def test_the_installation_gives_four_capped_sources_without_places_or_the_project_itself():
    documents = read_python(SMALL)
    counts = count_by_source(documents)
    caps = {"python/code": 0.3, "python/docstrings": 0.2, "python/readmes": 0.1, "python/licences": 0.05}
    assert set(counts) == set(caps)
    for source, cap in caps.items():
        assert cap * 0.7e6 < counts[source]["bytes"] <= cap * 1e6, source
    assert len({document.id for document in documents}) == len(documents)
    assert documents == sorted(documents, key=lambda document: (document.source, document.path))
    place = sysconfig.get_path("stdlib")
    for document in documents:
        assert not document.path.startswith("/")
        assert place not in document.text
        assert "loopline" not in document.id


def test_code_is_the_file_and_docstrings_are_prose_of_that_file():
    documents = {document.id: document for document in read_python(SMALL.model_copy(update={"code_megabytes": 30}))}
    root = Path(sysconfig.get_path("stdlib"))
    assert documents["python/code:bisect.py"].text == (root / "bisect.py").read_text()
    assert documents["python/code:bisect.py"].lane == "code"
    prose = next(d for d in documents.values() if d.path.endswith(".py#docstrings"))
    module = (root / prose.path.removesuffix("#docstrings")).read_text()
    first = next(
        doc for node in ast.walk(ast.parse(module))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (doc := ast.get_docstring(node)) and len(doc) >= 80
    )  # fmt: skip
    assert first in prose.text
    assert prose.lane == "prose"


def test_a_cap_of_nothing_leaves_a_source_out():
    none = PythonConfig(code_megabytes=0, docstring_megabytes=0, readme_megabytes=0, licence_megabytes=0.02)
    assert {document.source for document in read_python(none)} == {"python/licences"}
