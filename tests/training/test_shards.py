"""The mixture sampler: exact proportions, every window once per epoch, batches that depend on the step alone."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.training.shards import PERIOD, ShardSet, assignment, permute


def write_set(path, streams, dtype="uint16"):
    """A data artifact's shards: {source: (train tokens, held-out tokens)}."""
    sources = {}
    (path / "shards").mkdir(parents=True)
    for source, (train, heldout) in streams.items():
        for split, tokens in (("train", train), ("heldout", heldout)):
            file = path / "shards" / f"{source}.{split}.bin"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(np.asarray(tokens, dtype=dtype).tobytes())
        sources[source] = {
            "weight": 1 / len(streams),
            "train_tokens": len(train),
            "heldout_tokens": len(heldout),
            "heldout_bytes": 2 * len(heldout),
        }
    (path / "manifest.json").write_text(json.dumps({"vocab_size": 9, "dtype": dtype, "sources": sources}))
    return ShardSet(path)


@settings(max_examples=30)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=25))
def test_every_prefix_serves_each_source_its_share_to_within_one_row(weights):
    order, before = assignment(tuple(weights))
    counts = np.bincount(order, minlength=len(weights))
    assert counts.sum() == PERIOD
    assert (np.abs(counts - np.array(weights) / sum(weights) * PERIOD) <= len(weights)).all()
    served = np.zeros(len(weights))
    for row in range(PERIOD):
        assert (before[row] == served).all()
        assert np.abs(served - counts / PERIOD * row).max() < 1
        served[order[row]] += 1


def test_weights_that_fit_the_period_are_met_exactly(tmp_path):
    shards = write_set(tmp_path, {"a": (range(300), [1]), "b/c": (range(300), [1]), "d": (range(300), [1])})
    weights = {"a": 0.5, "b/c": 0.25, "d": 0.25}
    drawn = Counter(shards.locate(row, 16, 7, weights)[0] for row in range(400))
    assert drawn == {"a": 200, "b/c": 100, "d": 100}


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=40)
def test_permute_is_a_permutation(size, key):
    assert len({permute(index, size, key) for index in range(size)}) == size


def test_each_window_comes_once_per_epoch_and_in_another_order_the_next(tmp_path):
    shards = write_set(tmp_path, {"a": (range(1000), [1]), "b": (range(500), [1])})
    starts = [
        start for source, start in (shards.locate(row, 10, 3, {"a": 3, "b": 1}) for row in range(1000)) if source == "a"
    ]
    first, second = starts[:100], starts[100:200]
    assert len({start % 1000 for start in first}) == len({start % 1000 for start in second}) == 100
    assert {start % 10 for start in first} != {start % 10 for start in second} or first != second
    covered = {token % 1000 for start in first for token in range(start, start + 10)}
    assert covered == set(range(1000))


def test_a_batch_depends_on_its_step_alone_and_on_the_seed(tmp_path):
    streams = {"a": (range(5000), [1]), "b": (range(7000, 9000), [1])}
    shards = write_set(tmp_path, streams)
    run = [shards.batch(step, rows=6, length=32, seed=5) for step in range(20)]
    resumed = ShardSet(tmp_path)
    for step in (19, 7, 13):
        assert (resumed.batch(step, 6, 32, 5) == run[step]).all()
    # The same rows whatever the batch size: a step of 12 rows is two steps of 6.
    assert (shards.batch(3, 12, 32, 5) == np.concatenate(run[6:8])).all()
    assert not (shards.batch(0, 6, 32, 6) == run[0]).all()
    assert run[0].shape == (6, 33)
    assert run[0].dtype == np.int64


def test_windows_are_pieces_of_the_stream_read_as_a_ring(tmp_path):
    shards = write_set(tmp_path, {"a": (range(50), [1])})
    for row in shards.batch(0, 40, 16):
        assert ((row[1:] - row[:-1]) % 50 == 1).all()
    short = write_set(tmp_path / "short", {"a": ([3, 1], [1])}).batch(0, 1, 6)
    assert sorted(set(short[0].tolist())) == [1, 3]


def test_heldout_windows_make_every_token_a_target_once(tmp_path):
    shards = write_set(tmp_path, {"a": ([1, 2], np.arange(2, 103))})
    windows = shards.heldout_windows("a", 16)
    targets = windows[:, 1:].ravel()
    assert targets[targets != 0].tolist() == list(range(3, 103))
    assert (windows[1:, 0] == windows[:-1, -1]).all()
    assert len(shards.heldout_windows("a", 16, limit=3)) == 3
    assert shards.heldout_bytes_per_token("a") == 2


def test_a_source_without_training_tokens_is_never_drawn(tmp_path):
    shards = write_set(tmp_path, {"a": (range(100), [1]), "b": ([], [])})
    assert {shards.locate(row, 8, 0)[0] for row in range(50)} == {"a"}
    assert shards.heldout_windows("b", 8).shape == (0, 9)


def test_wide_vocabularies_use_four_bytes(tmp_path):
    shards = write_set(tmp_path, {"a": ([70_000, 1] * 40, [1])}, dtype="uint32")
    assert shards.batch(0, 1, 8).max() == 70_000


def test_bad_mixtures_and_damaged_shards_are_refused(tmp_path):
    shards = write_set(tmp_path, {"a": (range(100), [1]), "b": ([], [])})
    with pytest.raises(UserError, match="does not have: c"):
        shards.batch(0, 1, 8, weights={"c": 1.0})
    with pytest.raises(UserError, match="negative weight"):
        shards.batch(0, 1, 8, weights={"a": -1.0})
    with pytest.raises(UserError, match="no weight"):
        shards.batch(0, 1, 8, weights={"b": 1.0})
    with pytest.raises(UserError, match="has no source 'x'"):
        shards.heldout_windows("x", 8)
    with (tmp_path / "shards" / "a.train.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="holds 201 bytes where the manifest promises 100 tokens"):
        ShardSet(tmp_path)
