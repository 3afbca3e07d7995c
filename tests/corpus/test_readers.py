"""Readers on real files of every kind, and on the broken ones people bring."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.corpus.config import SourceConfig
from loopline.corpus.document import make_document, read_documents, write_documents
from loopline.corpus.readers import decode, extract_html, read_source, sample

PAGE = """<html><head><title>t</title><script>var x = 1;</script></head><body><nav><a href="/">Home</a>
<a>Login</a></nav><main><h1>Lamps</h1><p>A lamp gives light. Caf&eacute;s have many of them, and people read below them
at night.</p></main>
<footer>All rights reserved</footer></body></html>"""


def source(path, **changes):
    return SourceConfig(name="mine", path=path, **changes)


def test_a_folder_of_mixed_files(tmp_path):
    (tmp_path / "b.md").write_text("# Title\n\nA note.")
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1\n")
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "one", "licence": "MIT"}\n\n{"text": "def f(): 1", "path": "f.py"}\n'
    )
    pq.write_table(pa.table({"text": ["first", None, "second"], "n": [1, 2, 3]}), tmp_path / "t.parquet")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / ".hidden.txt").write_text("secret")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.py").write_text("no")
    documents = read_source(source(tmp_path, licence="CC0-1.0"))
    found = {document.path: document for document in documents}
    assert list(found) == [
        "b.md", "page.html", "rows.jsonl#1", "rows.jsonl#3/f.py", "sub/a.py", "t.parquet#1", "t.parquet#3",
    ]  # fmt: skip
    assert found["rows.jsonl#1"].licence == "MIT"
    assert found["b.md"].licence == "CC0-1.0"
    assert [found[name].lane for name in ("b.md", "sub/a.py", "rows.jsonl#3/f.py")] == ["prose", "code", "code"]
    assert "Cafés have many" in found["page.html"].text
    assert not any(word in found["page.html"].text for word in ("Login", "var x"))
    assert found["b.md"].id == "mine:b.md"


def test_the_corpus_does_not_depend_on_where_the_folder_lies(tmp_path):
    for name in ("one", "two/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.txt").write_text("hello")
    assert read_source(source(tmp_path / "one")) == read_source(source(tmp_path / "two/deep"))


def test_kind_reads_only_that_kind_and_takes_a_single_file_of_any_suffix(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.txt").write_text("plain")
    (tmp_path / "dump.data").write_text(json.dumps({"text": "row"}))
    assert [d.path for d in read_source(source(tmp_path, kind="html"))] == ["a.html"]
    assert [d.text for d in read_source(source(tmp_path / "dump.data", kind="jsonl"))] == ["row"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "ok"}\n{bad}\n', r"x\.jsonl, line 2: not JSON"),
        ("x.jsonl", '{"text": "ok"}\n{"body": "no"}\n', r"x\.jsonl, line 2: no text under the key 'text'"),
        ("x.jsonl", "[1]\n", r"line 1: no text under the key"),
        ("x.parquet", "not parquet at all", r"x\.parquet is not a readable Parquet file"),
        ("x.png", "", "holds no text that Loopline reads"),
        ("x.txt", "  \n", "holds no text that Loopline reads"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_source(source(tmp_path))


def test_a_parquet_without_the_text_column_and_a_missing_folder(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has no column 'text'; it has body"):
        read_source(source(tmp_path))
    assert read_source(source(tmp_path, text_field="body"))[0].text == "x"
    pq.write_table(pa.table({"text": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="holds int, not text"):
        read_source(source(tmp_path))
    with pytest.raises(UserError, match="there is no file or folder"):
        read_source(source(tmp_path / "nowhere"))


def test_decode_knows_the_common_encodings():
    assert decode("né".encode()) == decode("\ufeffné".encode()) == decode("né".encode("utf-16")) == "né"
    assert decode("né — 1".encode("cp1252")) == "né — 1"
    assert decode(b"\x7fELF\0\0") is None


def test_html_extraction_of_an_empty_page_is_empty():
    assert extract_html("<html></html>").strip() == ""


@given(st.lists(st.text(max_size=20), max_size=30, unique=True), st.integers(0, 200), st.integers(0, 100))
def test_sampling_respects_the_cap_the_order_and_a_larger_cap_of_equal_documents(texts, limit, more):
    documents = [make_document("s", str(number), text) for number, text in enumerate(texts)]
    chosen = sample(documents, limit)
    assert sum(len(document.text.encode()) for document in chosen) <= limit
    assert chosen == [document for document in documents if document in chosen]
    assert set(sample(documents[::-1], limit)) == set(chosen)
    assert sample(documents, None) == documents


def test_documents_survive_parquet_and_give_the_same_bytes(tmp_path):
    documents = [
        make_document("s", f"{n}.txt", text) for n, text in enumerate(["", "a\n", "é漢\U0001f600", "x\ud800y"])
    ]
    write_documents(tmp_path / "a.parquet", documents)
    write_documents(tmp_path / "b.parquet", documents)
    assert read_documents(tmp_path / "a.parquet") == documents
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_unusable_document_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_documents(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_documents(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="lacks the columns id, source, path, licence, sha256"):
        read_documents(tmp_path / "a.parquet")
    write_documents(tmp_path / "a.parquet", [])
    with pytest.raises(UserError, match="holds no documents"):
        read_documents(tmp_path / "a.parquet")
