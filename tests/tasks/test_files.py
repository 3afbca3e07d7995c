"""Every format gives the same rows, and every mistake in a file its place."""

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.tasks.files import read_table

text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\x00\r"), max_size=20)
rows_strategy = st.lists(
    st.fixed_dictionaries({"prompt": text.map(lambda word: "p" + word), "answer": text.map(lambda word: "a" + word)}),
    min_size=1,
    max_size=6,
)


def write(path, rows):
    """The rows in the format that the name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = (lines if name.endswith(".jsonl") else json.dumps(rows)).encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@settings(max_examples=30)
@given(rows=rows_strategy)
def test_every_format_gives_the_same_rows(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("files")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "b.jsonl.gz", "b.json.gz"):
        table = read_table(write(folder / name, rows))
        assert table.rows == rows, name
        assert set(table.columns) == {"prompt", "answer"}
        assert table.place(0) == f"{name}, row 1"


def test_messages_survive_tables_of_text_and_of_columns(tmp_path):
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    as_text = tmp_path / "a.csv"
    with as_text.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(messages)], ["[not json"]])
    # A cell of text stays text; columns of messages are parsed where they are known to be such (`tasks.layouts`).
    assert [row["messages"] for row in read_table(as_text).rows] == [json.dumps(messages), "[not json"]
    mixed = [{"messages": [*messages, {"role": "tool", "content": "x", "name": "f"}]}]
    table = read_table(write(tmp_path / "a.parquet", mixed))
    # A struct column has every key for every message; the empty ones are left out again.
    assert table.rows == mixed


def test_an_object_around_the_list_is_seen_through(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"version": 1, "data": [{"prompt": "a"}]}')
    assert read_table(path).rows == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", r"ends in '\.txt' is not understood.*Fix: use a file that ends in \.jsonl"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl, line 2: not JSON.*Fix: write one JSON object per line"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"line 2: holds list instead of an object"),
        ("a.jsonl", b'{"a": NaN}\n', r"line 1: not JSON \(NaN is not a JSON number\)"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', r"line 1: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"line 2: byte 16 is not UTF-8"),
        ("a.jsonl", b"\n\n", r"a\.jsonl holds no rows"),
        ("a.json", b'{"a": 1}\n{"a": 2}', r"not JSON .*Fix: the file looks like JSON Lines"),
        ("a.json", b'{"a": 1}', r"does not hold a list of objects"),
        ("a.csv", b"a,b\n1,2\n3\n", r"line 3: has fewer fields than the header"),
        ("a.csv", b"a,b\n1,2,3\n", r"line 2: has more fields than the header"),
        ("a.csv", b'a,b\n"1,2\n', r"after line 1: not CSV"),
        ("a.parquet", b"PAR1 but not really", r"is not a Parquet file, or damaged"),
        ("a.jsonl.gz", b"not gzip", r"cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 99)[:30], r"cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(path)
    assert "Fix: " in str(caught.value)


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*none\.jsonl"):
        read_table(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_table(tmp_path / "folder.jsonl")
