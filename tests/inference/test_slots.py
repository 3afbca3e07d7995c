"""Slots: gaps closed without losing a row, whatever the order in which rows end."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.inference.slots import EVEN, Slots
from tests.support_model import tiny_model

MODEL = tiny_model()


@settings(max_examples=60)
@given(data=st.data(), running=st.integers(1, 96))
def test_closing_gaps_keeps_every_row_with_its_keys(data, running):
    slots = Slots(MODEL, running, 64)
    slots.running = running
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=running, max_size=running))
    for slot, length in enumerate(lengths):
        slots.at[slot], slots.tokens[slot] = length, 100 + slot
        slots.cache.keys[:, slot, :, :length] = float(slot + 1)
        slots.cache.values[:, slot, :, :length] = -float(slot + 1)
    gaps = sorted(data.draw(st.sets(st.integers(0, running - 1))))
    seats = data.draw(st.integers(0, len(gaps)))
    for gap in gaps:
        slots.vacate(gap)
    names = list(range(running))
    moves, left = slots.close_gaps(gaps, seats)
    for source, target in moves:
        names[target] = names[source]
    assert len(left) == seats and slots.running == running - len(gaps) + seats
    rows = [slot for slot in range(slots.running) if slot not in left]
    assert sorted(names[slot] for slot in rows) == sorted(set(range(running)) - set(gaps))
    for slot in rows:
        length = lengths[names[slot]]
        assert (slots.at[slot], slots.tokens[slot]) == (length, 100 + names[slot])
        assert bool((slots.cache.keys[:, slot, :, :length] == names[slot] + 1).all())
        assert bool((slots.cache.values[:, slot, :, :length] == -names[slot] - 1).all())
    empty = [*left, *range(slots.running, slots.rows)]
    assert not slots.at[empty].any() and not slots.tokens[empty].any()


def test_the_cache_grows_when_a_row_needs_it_and_keeps_what_it_holds():
    slots = Slots(MODEL, 3, 100)
    slots.cache = MODEL.new_cache(3, 16)
    slots.cache.keys[:] = 2.0
    slots.reserve(50)
    assert 50 <= slots.cache.length <= 112
    assert bool((slots.cache.keys[:, :, :, :16] == 2).all()) and not slots.cache.keys[:, :, :, 16:].any()


def test_an_even_number_of_rows_is_computed_from_some_size_on():
    slots = Slots(MODEL, 21, 32)
    assert slots.rows % EVEN == 0 and slots.logits.shape[0] == slots.rows
    for running, computed in ((1, 1), (EVEN - 1, EVEN - 1), (EVEN, EVEN), (EVEN + 1, 2 * EVEN), (21, 24)):
        slots.running = running
        assert slots.computed == computed
    assert isinstance(slots.cache.keys, torch.Tensor)
