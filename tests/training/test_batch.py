"""Packing changes nothing but the padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support_model import tiny_model
from throughline.base.errors import UserError
from throughline.training.batch import BATCH_COST, Example, assign_rows, build_batch, by_length, pack
from throughline.training.objectives import score_tokens


@settings(max_examples=20, deadline=None)
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


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=14))
def test_in_long_rows_short_sequences_stand_alone_and_are_scored_the_same(lengths):
    model = tiny_model(4)
    generator = torch.Generator().manual_seed(sum(lengths))
    examples = [
        Example(torch.randint(10, 300, (n,), generator=generator).tolist(), [1.0] * n, {"id": [float(i)] * n})
        for i, n in enumerate(lengths)
    ]
    found = {}
    for batch in pack(examples, 2048, 2):
        assert batch.mask() is None and batch.tokens_BT.numel() <= 2 * 2048
        with torch.no_grad():
            scores = score_tokens(model, batch)
        owners = batch.extras["id"].reshape(-1)[scores.index_M]
        for owner in owners.unique():
            found[int(owner)] = scores.logprobs_M[owners == owner]
    for number, example in enumerate(examples):
        (packed,) = (build_batch([[example, example]]),)
        with torch.no_grad():
            expected = score_tokens(model, packed).logprobs_M[: len(example.tokens) - 1]
        torch.testing.assert_close(found.pop(number), expected, atol=1e-5, rtol=1e-4)
    assert not found


def test_rows_that_are_nearly_full_stay_packed():
    examples = [Example([10] * 60, [1.0] * 60) for _ in range(40)]
    assert all(batch.mask() is not None for batch in pack(examples, 128, 8))


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), most=st.integers(40, 200))
def test_no_other_cut_of_the_sorted_sequences_is_cheaper(lengths, most):
    batches, price = by_length(lengths, most)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    ordered = sorted(lengths, reverse=True)

    def cost(parts):
        return sum(BATCH_COST + len(part) * part[0] * (1 + part[0] / 2048) for part in parts)

    assert price == pytest.approx(cost([[lengths[number] for number in batch] for batch in batches]))
    for cuts in range(2 ** (len(ordered) - 1)):
        ends = [n + 1 for n in range(len(ordered) - 1) if cuts >> n & 1] + [len(ordered)]
        parts = [ordered[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if all(len(part) == 1 or len(part) * part[0] <= most for part in parts):
            assert price <= cost(parts) + 1e-6
