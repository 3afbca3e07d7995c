"""Mixture updates: weak sources gain, changes stay bounded, repetition stays capped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.plan.config import RemixConfig
from loopline.plan.mixture import remix, scale_within

ENOUGH = {"code": 10**9, "maths": 10**9, "web": 10**9}
EVEN = {"code": 0.3, "maths": 0.3, "web": 0.4}


def test_the_source_with_the_highest_loss_gains() -> None:
    after, reasons = remix(RemixConfig(), EVEN, ENOUGH, {"code": 1.0, "maths": 2.0, "web": 1.0}, {}, 1000)
    assert after["maths"] > 0.3 and after["code"] < 0.3 and after["web"] < 0.4
    assert any("maths" in reason and "2.000 bits per byte" in reason for reason in reasons)


def test_targets_beat_the_mean_and_covered_task_sets_count() -> None:
    config = RemixConfig(targets={"code": 0.5, "maths": 2.0, "web": 1.0})
    after, _ = remix(config, EVEN, ENOUGH, {"code": 1.0, "maths": 2.0, "web": 1.0}, {}, 1000)
    assert after["code"] > 0.3 and after["maths"] < 0.3
    scores = {"sums": 0.1, "tag:hard": 0.1, "code": 0.9}
    for name in ("sums", "tag:hard"):
        after, _ = remix(RemixConfig(covers={"maths": [name]}), EVEN, ENOUGH, {}, scores, 1000)
        assert after["maths"] > 0.3 > after["code"]


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    st.lists(st.floats(0.1, 8), min_size=6, max_size=6),
    st.lists(st.integers(2_000, 100_000), min_size=6, max_size=6),
    st.floats(0, 5),
)
def test_bounds_hold_for_any_evaluation(raw: list, losses: list, counts: list, strength: float) -> None:
    names = [f"s{n}" for n in range(len(raw))]
    before = {name: value / sum(raw) for name, value in zip(names, raw, strict=True)}
    tokens = dict(zip(names, counts, strict=False))
    config = RemixConfig(strength=strength, min_weight=0.005)
    bits = dict(zip(names, losses, strict=False))
    reachable = sum(min(2 * before[name], 4 * tokens[name] / 10_000, 1) for name in names)
    if reachable < 1:
        with pytest.raises(UserError, match="holds too little"):
            remix(config, before, tokens, bits, {}, 10_000)
        return
    after, _ = remix(config, before, tokens, bits, {}, 10_000)
    assert sum(after.values()) == pytest.approx(1, abs=1e-4)
    for name in names:
        assert after[name] <= 2 * before[name] + 1e-6
        assert 10_000 * after[name] <= 4 * tokens[name] + 0.02
        assert after[name] >= min(before[name] / 2, 4 * tokens[name] / 10_000) - 1e-6


def test_refuses_what_it_cannot_judge_or_reach() -> None:
    with pytest.raises(UserError, match="say nothing about any source"):
        remix(RemixConfig(), EVEN, ENOUGH, {"other": 1.0}, {}, 1000)
    with pytest.raises(UserError, match="holds too little"):
        remix(RemixConfig(), EVEN, {"code": 1, "maths": 1, "web": 1}, {"code": 1.0}, {}, 1000)
    with pytest.raises(UserError, match="the task set 'poems', which was not evaluated"):
        remix(RemixConfig(covers={"code": ["poems"]}), EVEN, ENOUGH, {}, {"sums": 0.5}, 1000)
    with pytest.raises(UserError, match="covers names 'books'"):
        remix(RemixConfig(covers={"books": ["sums"]}), EVEN, ENOUGH, {}, {"sums": 0.5}, 1000)


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 0.2), st.floats(0.4, 1)), min_size=3, max_size=5))
def test_scaling_keeps_the_order_of_what_is_not_clipped(rows: list) -> None:
    wanted = {str(n): row[0] for n, row in enumerate(rows)}
    low, high = {str(n): row[1] for n, row in enumerate(rows)}, {str(n): row[2] for n, row in enumerate(rows)}
    result = scale_within(wanted, low, high)
    assert sum(result.values()) == pytest.approx(1, abs=1e-4)
    free = [name for name in wanted if low[name] + 1e-5 < result[name] < high[name] - 1e-5]
    ratios = [result[name] / wanted[name] for name in free]
    assert not ratios or max(ratios) == pytest.approx(min(ratios), rel=0.02)
