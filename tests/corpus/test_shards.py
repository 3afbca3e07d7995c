"""Writing shards, and the mixture of sources."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.corpus.document import make_document
from loopline.corpus.shards import mixture, token_dtype, write_split
from loopline.corpus.tokenizer import plain, train


def test_streams_hold_every_document_closed_by_the_end_mark(tmp_path):
    tokenizer = plain(train(["a lamp and a table " * 10], 270))
    documents = [make_document("s", str(n), text) for n, text in enumerate(["one lamp", "<|end|>", "", "é" * 5])]
    entry = write_split(tmp_path, "s/x", "train", documents, tokenizer, 270)
    stream = np.fromfile(tmp_path / "s" / "x.train.bin", dtype="<u2")
    ends = np.fromfile(tmp_path / "s" / "x.train.idx", dtype="<u8")
    assert (stream == 1).sum() == len(documents) == entry["train_documents"]
    assert np.flatnonzero(stream == 1).tolist() == (ends - 1).tolist()
    pieces = [tokenizer.decode(part[:-1].tolist()) for part in np.split(stream, ends[:-1].astype(int))]
    assert sorted(pieces) == sorted(document.text for document in documents)
    assert entry["train_tokens"] == len(stream)
    assert entry["train_bytes"] == sum(len(document.text.encode()) for document in documents)
    assert entry["train_sha256"] == hashlib.sha256(stream.tobytes()).hexdigest()
    # The order is that of the ids' hashes, not that of the list.
    assert write_split(tmp_path, "t", "train", documents[::-1], tokenizer, 270)["train_sha256"] == entry["train_sha256"]


def test_an_empty_split_is_an_empty_file(tmp_path):
    tokenizer = train(["abc"], 266)
    assert write_split(tmp_path, "s", "heldout", [], tokenizer, 266)["heldout_tokens"] == 0
    assert (tmp_path / "s.heldout.bin").read_bytes() == b""


def test_the_token_type_follows_the_vocabulary():
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


SIZES = {"python/code": 300, "python/readmes": 100, "notes": 100, "synthetic/a": 30, "synthetic/b": 10}


@given(
    st.dictionaries(st.sampled_from(["python", "synthetic", "notes", "python/code"]), st.floats(0.01, 9), min_size=1)
)
def test_weights_sum_to_one_and_groups_share_by_size(weights):
    shares = mixture(SIZES, weights, 0.5)
    assert set(shares) == set(SIZES)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    if "synthetic" in weights:
        assert shares["synthetic/a"] == pytest.approx(3 * shares["synthetic/b"])
    if {"python", "notes"} <= set(weights) and "python/code" not in weights:
        python = shares["python/code"] + shares["python/readmes"]
        assert python / shares["notes"] == pytest.approx(weights["python"] / weights["notes"])


def test_by_default_generated_text_has_its_share_and_the_rest_goes_by_size():
    shares = mixture(SIZES, {}, 0.5)
    assert shares["synthetic/a"] + shares["synthetic/b"] == pytest.approx(0.5)
    assert shares["python/code"] == pytest.approx(0.3)
    assert mixture({"a": 10, "b": 30}, {}, 0.5) == {"a": 0.25, "b": 0.75}
    assert mixture({"a": 10, "synthetic/b": 30}, {}, 1.0) == {"a": 0.0, "synthetic/b": 1.0}
    assert mixture({"a": 10}, {}, 1.0) == {"a": 1.0}


def test_unknown_and_empty_sources_are_refused():
    with pytest.raises(UserError, match="names 'wiki'"):
        mixture(SIZES, {"wiki": 1.0}, 0.5)
    with pytest.raises(UserError, match="without text"):
        mixture({"a": 0, "b": 5}, {"a": 1.0}, 0.5)
