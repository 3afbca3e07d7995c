"""The content digest covers names and bytes, and nothing that may differ between equal runs."""

import hashlib
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.store.artifact import Artifact, content_digest
from tests.support import make_artifact

NAMES = st.sampled_from(["a.txt", "b.txt", "deep/a.txt", "deep/er/c", "logs/x", "deep/log/y", "deep/artifact.json"])
TREES = st.dictionaries(NAMES, st.binary(max_size=6), max_size=6)


def write(path, tree):
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    for name, content in tree.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trees")


@settings(max_examples=80)
@given(first=TREES, second=TREES)
def test_digests_are_equal_exactly_when_names_and_bytes_are(folder, first, second):
    one, two = write(folder / "one", first), write(folder / "elsewhere" / "two", second)
    assert (content_digest(one) == content_digest(two)) == (first == second)


@settings(max_examples=30)
@given(tree=TREES, noise=st.binary(max_size=5))
def test_the_manifest_and_the_log_do_not_count(folder, tree, noise):
    plain = content_digest(write(folder / "noisy", tree))
    (folder / "noisy" / "artifact.json").write_bytes(noise)
    (folder / "noisy" / "log" / "deep").mkdir(parents=True)
    (folder / "noisy" / "log" / "deep" / "times.json").write_bytes(noise)
    assert content_digest(folder / "noisy") == plain


def test_the_digest_is_what_the_formats_page_says(tmp_path):
    write(tmp_path / "x", {"b": b"2", "a/c": b""})
    listing = [["a/c", hashlib.sha256(b"").hexdigest()], ["b", hashlib.sha256(b"2").hexdigest()]]
    assert content_digest(tmp_path / "x") == hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def test_renames_changes_and_empty_files_are_noticed(tmp_path):
    digests = {
        content_digest(write(tmp_path / "x", tree))
        for tree in (
            {},
            {"a.txt": b""},
            {"b.txt": b""},
            {"a.txt": b"1"},
            {"a.txt": b"2"},
            {"a.txt": b"1", "b.txt": b""},
            {"d/a.txt": b"1"},
        )
    }
    assert len(digests) == 7


def test_without_a_manifest_there_is_no_artifact(tmp_path):
    write(tmp_path / "x", {"weights": b"1"})
    with pytest.raises(UserError, match="not a finished artifact.*run the stage"):
        Artifact.load(tmp_path / "x")
    artifact = make_artifact(tmp_path / "x", "sft", "checkpoint")
    assert (artifact.stage, artifact.kind, artifact.digest) == ("sft", "checkpoint", content_digest(tmp_path / "x"))
    assert (artifact / "weights").read_bytes() == b"1"
