"""The part is decided by the instance alone, and a space that is too small is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.tasks.generators.instance import Instance, collect, fill, part_of, random_for


def test_share_of_each_part():
    share = Counter(part_of(f"key {number}", 12) for number in range(20_000))
    assert all(2200 < share[part] < 2600 for part in ("dev", "heldout")) and share["train"] > 14_800


@given(st.text(), st.integers(1, 49))
def test_a_larger_share_only_adds_keys(key, percent):
    assert part_of(key, percent) != "heldout" or part_of(key, percent + 1) == "heldout"


def test_collect_gives_distinct_prompts_or_names_the_way_out():
    rng = random_for(0, "x")

    def draw():
        number = rng.randint(0, 9)
        return Instance("k", "t", f"{number}?", "a", []) if number else None

    assert len({item.prompt for item in collect(draw, 9, "toy")}) == 9
    with pytest.raises(UserError, match="Only 9 distinct toy instances"):
        collect(draw, 10, "toy")


def test_streams_differ_by_name_and_seed():
    draws = {random_for(seed, name).random() for seed in (0, 1) for name in ("a", "b")}
    assert len(draws) == 4


@given(st.integers(1, 300))
def test_fill_reaches_its_size(size):
    assert len(fill(lambda: "ab", size)) >= size - 1
