"""Attention by sequence against attention under a mask: the same numbers, forward and back, on fewer pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.model.heads import ScoreModel
from loopline.model.segments import BUCKET_PAIRS, STEP, Segments, bucket_shapes, price
from tests.support_model import tiny_model

LENGTHS = st.lists(st.lists(st.integers(1, 23), min_size=1, max_size=4), min_size=1, max_size=4)


def owners_of(rows, spare=0):
    """(B, T) numbers of sequences in rows of the given lengths, -1 where empty."""
    width = max(map(sum, rows)) + spare
    table, number = torch.full((len(rows), width), -1), 0
    for row, lengths in enumerate(rows):
        at = 0
        for length in lengths:
            table[row, at : at + length] = number
            at, number = at + length, number + 1
    return table


@settings(max_examples=25)
@given(rows=LENGTHS, spare=st.integers(0, 3))
def test_every_id_has_one_place_and_comes_back(rows, spare):
    owners = owners_of(rows, spare)
    segments = Segments.of(owners)
    x = torch.randn(owners.numel(), 3, dtype=torch.float64, requires_grad=True)
    parts = segments.gather(x)
    assert [tuple(part.shape[:2]) for part in parts] == list(segments.shapes)
    assert all(length % STEP == 0 for _, length in segments.shapes)
    back = segments.scatter(parts)
    inside = (owners.reshape(-1) >= 0)[:, None]
    assert torch.equal(back, torch.where(inside, x, 0.0))
    weight = torch.randn_like(x)
    (back * weight).sum().backward()
    assert torch.equal(x.grad, torch.where(inside, weight, 0.0))


@settings(max_examples=10)
@given(rows=LENGTHS, seed=st.integers(0, 5))
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_states_and_gradients_are_those_of_the_mask(rows, seed, family):
    model = tiny_model(seed, qk_norm=family == "qwen3", qkv_bias=family != "qwen3").double()
    owners = owners_of(rows, 2)
    tokens = torch.randint(10, 300, owners.shape, generator=torch.Generator().manual_seed(seed))
    same = (owners[:, :, None] == owners[:, None, :]) & torch.ones(2 * owners.shape[1:], dtype=torch.bool).tril()
    positions = torch.zeros_like(owners)
    for row in range(len(owners)):
        for number in owners[row].unique():
            where = owners[row] == number
            positions[row, where] = torch.arange(int(where.sum()))
    inside = owners >= 0
    weight = torch.randn(*owners.shape, model.config.hidden_size, dtype=torch.float64) * inside[:, :, None]
    found = []
    for arguments in ({"mask": Segments.of(owners)}, {"mask": same[:, None], "positions_BT": positions}):
        model.zero_grad(set_to_none=True)
        hidden = model(tokens, **arguments)
        (hidden * weight).sum().backward()
        found.append([hidden.detach()[inside], *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=7))
def test_no_other_buckets_are_cheaper(lengths):
    ordered = sorted(lengths, reverse=True)
    shapes = bucket_shapes(ordered)
    assert sum(count for count, _ in shapes) == len(ordered)
    first = 0
    for count, length in shapes:
        assert length - STEP < ordered[first] <= length
        first += count
    for cuts in range(2 ** (len(ordered) - 1)):
        ends = [n + 1 for n in range(len(ordered) - 1) if cuts >> n & 1] + [len(ordered)]
        parts = [ordered[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        other = [(len(part), -(-part[0] // STEP) * STEP) for part in parts]
        assert price(shapes) <= price(other)


def test_pairs_are_counted():
    segments = Segments.of(owners_of([[16, 8], [16]]))
    assert segments.pairs == pytest.approx(BUCKET_PAIRS + 3 * 16 * 16 / 2)


def test_a_score_model_takes_what_its_decoder_takes():
    model = ScoreModel(tiny_model(2))
    owners = owners_of([[5, 7], [12]])
    tokens = torch.from_numpy(np.random.default_rng(0).integers(10, 300, owners.shape))
    hidden = model(tokens, mask=Segments.of(owners))
    torch.testing.assert_close(hidden[1], model.decoder(tokens[1:2])[0])
    assert model.takes_segments
