"""Bits per byte against sums done token by token."""

import math

import numpy as np
import pytest
import torch

from loopline.base.files import write_json
from loopline.evaluation.bits import bits_per_byte, corpus_bits, window_nats, window_rows
from loopline.training.shards import ShardSet
from tests.support_model import tiny_model


def windows(n, length, seed=0):
    return np.random.default_rng(seed).integers(1, 300, (n, length + 1))


def test_nats_are_those_of_each_next_token():
    model, block = tiny_model(), windows(40, 16)
    block[-1, 9:] = 0  # padding at the end of the last window
    nats, counts = window_nats(model, block)
    assert counts.tolist() == [16] * 39 + [8]
    with torch.no_grad():
        for row in (0, 39):
            logprobs = model.logits(model(torch.tensor(block[row : row + 1, :-1])))[0].log_softmax(-1)
            total = sum(-float(logprobs[t, block[row, t + 1]]) for t in range(int(counts[row])))
            assert nats[row] == pytest.approx(total, rel=1e-5)


def test_a_model_that_knows_nothing_needs_log_vocabulary():
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = bits_per_byte(window_rows("s", *window_nats(model, windows(8, 16)), 2.0), seed=0)
    assert found.value == pytest.approx(math.log2(300) / 2) and found.n == 8
    assert found.low <= found.value <= found.high


def test_halving_the_bytes_doubles_the_bits():
    model, block = tiny_model(), windows(12, 16)
    one, two = (bits_per_byte(window_rows("s", *window_nats(model, block), size), seed=0) for size in (3.0, 1.5))
    assert two.value == pytest.approx(2 * one.value)
    assert one.low < one.value < one.high
    with pytest.raises(ValueError, match="no held-out window"):
        bits_per_byte([], seed=0)


def test_rows_per_source_that_has_heldout_text(tmp_path):
    stream = np.random.default_rng(1).integers(2, 300, 500).astype(np.uint16)
    entry = {"weight": 0.5, "train_tokens": 0, "heldout_documents": 3}
    sources = {
        "books": {**entry, "heldout_tokens": 500, "heldout_bytes": 1500},
        "empty": {**entry, "heldout_tokens": 0, "heldout_bytes": 0},
    }
    write_json(tmp_path / "data" / "manifest.json", {"vocab_size": 300, "sources": sources})
    (tmp_path / "data" / "shards").mkdir()
    for source in sources:
        (tmp_path / "data" / "shards" / f"{source}.train.bin").touch()
        (tmp_path / "data" / "shards" / f"{source}.heldout.bin").touch()
    stream.tofile(tmp_path / "data" / "shards" / "books.heldout.bin")
    rows, scored = corpus_bits(tiny_model(), ShardSet(tmp_path / "data"), 100, "pretrain", 0)
    assert [(row["checkpoint"], row["task"], row["metric"]) for row in rows] == [("pretrain", "books", "bits_per_byte")]
    assert 0 < rows[0]["low"] <= rows[0]["value"] <= rows[0]["high"]
    assert rows[0]["value"] == pytest.approx(math.log2(300) / 3, rel=0.1)
    # The windows add up to the total, and the last one holds what is left.
    bits, size = (sum(row[key] for row in scored) for key in ("bits", "bytes"))
    assert bits / size == pytest.approx(rows[0]["value"], rel=0.01)
    assert [row["window"] for row in scored] == list(range(rows[0]["n"])) and {row["source"] for row in scored} == {
        "books"
    }
