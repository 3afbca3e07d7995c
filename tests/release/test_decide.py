"""Both loops' decisions: promote on proof, keep otherwise."""

from __future__ import annotations

import random

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl
from loopline.release.config import GateConfig
from loopline.release.decide import compare_sets, compare_sources, decide
from tests.release.synthetic import FAMILIES, items, write_evaluation


def task_sets(before: dict[str, float], after: dict[str, float], n: int = 400):
    return compare_sets(items(before, n), items(after, n), GateConfig(), 0)


def verdict(before, after, **settings):
    return decide("traffic", "release", "retrain", task_sets(before, after), GateConfig(**settings))


ALL = dict.fromkeys(FAMILIES, 0.8)


def test_better_somewhere_and_worse_nowhere_promotes():
    decision = verdict(ALL, {**ALL, "code": 0.95})
    assert decision["decision"] == "promote"
    assert decision["before"] == "release" and decision["after"] == "retrain"
    better = [row["task"] for row in decision["comparisons"] if row["better"] == "a"]
    assert better == ["code"] and "code" in decision["reasons"][-1]


def test_a_gain_does_not_pay_for_a_loss():
    decision = verdict(ALL, {**ALL, "code": 0.99, "safety": 0.6})
    assert decision["decision"] == "keep"
    assert any("safety" in reason for reason in decision["reasons"])


def test_no_proven_gain_keeps_unless_only_losses_are_ruled_out():
    same = {**ALL, "code": 0.805}
    assert verdict(ALL, same)["decision"] == "keep"
    assert verdict(ALL, same, require_gain=False)["decision"] == "promote"


def test_holm_raises_the_bar_for_many_comparisons():
    measured = task_sets(ALL, {**ALL, "code": 0.82})
    rows = decide("traffic", "a", "b", measured, GateConfig())["comparisons"]
    assert all(row["p_holm"] >= row["p"] for row in rows)


def test_nothing_shared_is_an_error():
    with pytest.raises(UserError, match="share no task"):
        decide("traffic", "a", "b", task_sets({"code": 0.5}, {"format": 0.5}), GateConfig())


def windows(path, shift: float, seed: int = 0, count: int = 60):
    rng = random.Random(seed)
    rows = []
    for window in range(count):
        size = rng.randrange(200, 900)
        bits = size * (2.0 + rng.random() + shift + 0.01 * random.Random(f"{shift}/{window}").random())
        rows.append({"source": "stories", "window": window, "bits": bits, "bytes": size})
    write_jsonl(path / "bpb.jsonl", rows)
    return path, sum(row["bits"] for row in rows) / sum(row["bytes"] for row in rows)


def test_windows_are_paired_and_the_difference_is_that_of_the_totals(tmp_path):
    before, total_before = windows(tmp_path / "before", 0.0)
    after, total_after = windows(tmp_path / "after", -0.05)
    decision = decide(
        "benchmarks", "pretrain", "pretrain2", compare_sources(before, after, GateConfig(), 0), GateConfig()
    )
    row = decision["comparisons"][0]
    assert row["difference"] == pytest.approx(total_after - total_before)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert (row["better"], decision["decision"]) == ("a", "promote")
    back = decide("benchmarks", "x", "y", compare_sources(after, before, GateConfig(), 0), GateConfig())
    assert (back["comparisons"][0]["better"], back["decision"]) == ("b", "keep")


def test_different_texts_are_refused(tmp_path):
    before, _ = windows(tmp_path / "before", 0.0)
    after, _ = windows(tmp_path / "after", 0.0, seed=1)
    with pytest.raises(UserError, match="hold different text"):
        compare_sources(before, after, GateConfig(), 0)


def summary(path, value, half):
    row = {"checkpoint": path.name, "task": "web", "metric": "bits_per_byte", "n": 50, "value": value}
    write_json(path / "summary.json", {"evaluations": [{**row, "low": value - half, "high": value + half}]})
    return path


def test_without_windows_the_intervals_decide_unpaired(tmp_path):
    before, close, far = (
        summary(tmp_path / name, value, 0.02) for name, value in (("a", 2.0), ("b", 1.99), ("c", 1.9))
    )
    config = GateConfig()
    assert decide("benchmarks", "a", "b", compare_sources(before, close, config, 0), config)["decision"] == "keep"
    assert decide("benchmarks", "a", "c", compare_sources(before, far, config, 0), config)["decision"] == "promote"


def test_names_come_from_the_evaluations(tmp_path):
    from loopline.release.decide import checkpoint_name

    assert checkpoint_name(write_evaluation(tmp_path / "e", {"code": 0.5}, name="retrain"), "after") == "retrain"
    assert checkpoint_name(tmp_path, "after") == "after"
