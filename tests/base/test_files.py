"""A reader of a file sees the old bytes or the new ones, whatever happens to the writer."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, to_json, write_atomic, write_json, write_jsonl, write_text
from tests.faults import every_fault

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", ["death", "error"])
@pytest.mark.parametrize("old", [None, "old " * 1000])
def test_a_fault_between_any_two_changes_leaves_old_or_new(tmp_path, kind, old):
    new = "new " * 3000

    def prepare(k):
        path = tmp_path / str(k) / "file.txt"
        path.parent.mkdir()
        if old is not None:
            path.write_text(old)
        return lambda: write_text(path, new)

    count = 0
    for k in every_fault(prepare, kind):
        count += 1
        path = tmp_path / str(k) / "file.txt"
        assert (path.read_text() if path.exists() else None) in (old, new)
        if kind == "error":
            assert [item.name for item in path.parent.iterdir()] in ([], ["file.txt"])
        write_text(path, new)
        assert path.read_text() == new
    assert count >= 4  # temporary file, fsync, chmod, rename
    assert (tmp_path / str(count) / "file.txt").read_text() == new


def test_a_writer_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"row": 1}])

    def rows():
        yield {"row": 2}
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_jsonl(path, rows())
    assert read_jsonl(path) == [{"row": 1}]
    assert [item.name for item in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_full_disk_is_explained_and_the_old_file_kept(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"old": True})
    if not Path("/dev/full").is_char_device():
        pytest.fail("this test writes to /dev/full")

    def write(file):
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    with pytest.raises(UserError, match="full.*file.json was not written.*free some space"):
        write_atomic(path, write)
    assert read_json(path) == {"old": True}
    assert [item.name for item in tmp_path.iterdir()] == ["file.json"]


def test_other_errors_of_the_disk_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        write_text(tmp_path / "file", "x")


@settings(max_examples=60)
@given(value=VALUES)
def test_json_comes_back_and_equal_values_are_equal_bytes(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    written = path.read_bytes()
    write_json(path, json.loads(json.dumps(value)))
    assert path.read_bytes() == written


def test_the_order_of_keys_does_not_reach_the_bytes():
    assert to_json({"b": 1, "a": {"d": 2, "c": 3}}) == to_json({"a": {"c": 3, "d": 2}, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))


def test_written_files_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "deep" / "file", "x")
    assert (tmp_path / "deep" / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("content", "read", "message"),
    [
        ('{"a": 1,\n"b": }', read_json, "line 2, column 6: not JSON"),
        ('{"a": 1}\n\n{"b": \n', read_jsonl, "line 3: not JSON"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path, content, read, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(UserError, match="There is no file .*absent.json"):
        read(tmp_path / "absent.json")


@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3), max_size=5))
@settings(max_examples=30)
def test_rows_come_back_in_order_whatever_separators_their_text_holds(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, [*rows, {"text": "a\u2028b\x85c\r\nd"}])
    assert read_jsonl(path) == [*rows, {"text": "a\u2028b\x85c\r\nd"}]
