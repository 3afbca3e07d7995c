"""Packing changes nothing but the padding."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.training.batch import Example, assign_rows, build_batch, evenly, pack
from loopline.training.objectives import score_tokens
from tests.support_model import tiny_model


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12), row=st.integers(30, 90))
def test_packed_hidden_states_equal_unpacked_ones(lengths, row):
    model = tiny_model(3)
    generator = torch.Generator().manual_seed(sum(lengths))
    examples = [
        Example(torch.randint(10, 300, (n,), generator=generator).tolist(), [1.0] * n, scalars={"id": float(i)})
        for i, n in enumerate(lengths)
    ]
    seen = set()
    for batch in pack(examples, row, 3):
        with torch.no_grad():
            hidden = model(batch.tokens_BT, positions_BT=batch.positions_BT, mask=batch.mask())
        for number, identity in enumerate(batch.scalars["id"].tolist()):
            where = batch.sequences_BT == number
            example = examples[int(identity)]
            assert batch.tokens_BT[where].tolist() == list(example.tokens)
            with torch.no_grad():
                alone = model(torch.tensor([example.tokens]))[0]
            torch.testing.assert_close(hidden[where], alone, atol=1e-5, rtol=1e-4)
            seen.add(int(identity))
    assert seen == set(range(len(examples)))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_rows_hold_every_sequence_once_and_waste_less_than_half(lengths):
    rows = assign_rows(lengths, 50)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    loads = sorted(sum(lengths[n] for n in row) for row in rows)
    assert loads[-1] <= 50
    # Best fit never leaves two rows that one could hold.
    assert len(loads) < 2 or loads[0] + loads[1] > 50


def test_the_first_id_of_a_sequence_is_never_a_label():
    batch = build_batch([[Example([10, 11], [1, 1]), Example([12, 13, 14], [1, 1, 1])]])
    assert batch.weights_BT.tolist() == [[0, 1, 0, 1, 1]]


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="sequence_length"):
        assign_rows([5, 61], 60)


def test_a_batch_moves_whole_to_a_device():
    example = Example([10, 11, 12], [0.0, 1.0, 1.0], {"advantages": [0.0, 1.0, 2.0]}, {"normalizer": 2.0})
    batch = build_batch([[example, example], [example]])
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    tensors = [moved.tokens_BT, moved.positions_BT, moved.sequences_BT, moved.weights_BT]
    tensors += [moved.extras["advantages"], moved.scalars["normalizer"]]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.tokens_BT.shape == batch.tokens_BT.shape


def test_long_rows_of_short_sequences_go_without_a_mask_and_are_scored_the_same():
    model = tiny_model(4, max_position_embeddings=600)
    rng = torch.Generator().manual_seed(1)
    sizes = [40, 7, 90, 64, 33, 120, 55, 80, 12, 400]
    examples = [Example(torch.randint(10, 300, (n,), generator=rng).tolist(), [1.0] * n) for n in sizes]
    batches = pack(examples, 512, 4)
    assert all(batch.segments is not None for batch in batches)
    for batch in batches:
        with torch.no_grad():
            found, expected = score_tokens(model, batch), score_tokens(model, replace(batch, segments=None))
        torch.testing.assert_close(found.logprobs_M, expected.logprobs_M, atol=1e-5, rtol=1e-4)
        assert batch.to("meta").segments.places_M.device.type == "meta"


def test_short_rows_keep_their_mask():
    short = [Example([10] * 20, [1.0] * 20) for _ in range(40)]
    assert all(batch.segments is None for batch in pack(short, 256, 8))
    assert all(batch.segments is not None for batch in pack(short, 512, 8))


@given(count=st.integers(0, 60), most=st.integers(1, 12))
def test_parts_are_of_like_size_and_even_in_number(count, most):
    parts = evenly(list(range(count)), most)
    assert [item for part in parts for item in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes, default=0) <= most and max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(parts) <= 1 or len(parts) % 2 == 0 or len(parts) == count
    assert len(parts) <= -(-count // most) + 1
