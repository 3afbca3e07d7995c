"""A team: every part once, and none that waits for ever."""

import threading

import pytest

from loopline.compute.team import Team


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_part_is_computed_once_each_on_its_thread(parts):
    seen, meeting = [], threading.Barrier(parts)

    def work(part, among, word):
        meeting.wait(timeout=10)
        seen.append((part, among, word, threading.get_ident()))

    Team(3)(work, parts, "x")
    assert sorted(item[:3] for item in seen) == [(part, parts, "x") for part in range(parts)]
    assert len({item[3] for item in seen}) == parts
    assert next(item[3] for item in seen if item[0] == 0) == threading.get_ident()


def test_what_another_part_raises_is_raised_here():
    def work(part, parts):
        if part == 1:
            raise RuntimeError("part one")

    with pytest.raises(RuntimeError, match="part one"):
        Team(2)(work, 2)


def test_parts_that_wait_for_one_that_broke_are_released():
    never, ended = threading.Event(), []

    def work(part, parts):
        if part == 0:
            raise KeyboardInterrupt
        assert never.wait(timeout=10)
        ended.append(part)

    with pytest.raises(KeyboardInterrupt):
        Team(3)(work, 3, release=never.set)
    assert sorted(ended) == [1, 2]


def test_a_team_of_one_needs_no_thread():
    before = threading.active_count()
    seen = []
    Team(0)(lambda part, parts: seen.append((part, parts)), 1)
    assert seen == [(0, 1)] and threading.active_count() == before
