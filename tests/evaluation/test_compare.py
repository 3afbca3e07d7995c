"""Comparisons of evaluations: what is paired, what is not, and when a difference is called one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from loopline.base.errors import UserError
from loopline.base.files import write_jsonl
from loopline.cli import app
from loopline.evaluation.compare import compare, print_report
from loopline.evaluation.logs import Outcome, Outcomes
from loopline.evaluation.statistics import mcnemar, tango, wilson


def evaluation(name, scores, task_set="math", metric="score", **fields):
    """`scores`: id -> score or list of samples."""
    rows = []
    for key, value in scores.items():
        for score in value if isinstance(value, list) else [value]:
            rows.append(Outcome(task_set, str(key), score, metric, **fields))
    return Outcomes(name, "jsonl", tuple(rows))


def joined(name, *parts):
    return Outcomes(name, "jsonl", tuple(row for part in parts for row in part.rows))


def binary(wins, losses, both, neither):
    """(system, baseline) with these counts of items."""
    pairs = [(1, 0)] * wins + [(0, 1)] * losses + [(1, 1)] * both + [(0, 0)] * neither
    return {i: float(a) for i, (a, _) in enumerate(pairs)}, {i: float(b) for i, (_, b) in enumerate(pairs)}


def test_binary_scores_by_mcnemar():
    system, baseline = binary(30, 10, 50, 10)
    (row,) = compare([evaluation("old", baseline), evaluation("new", system)]).rows
    assert (row.system, row.baseline, row.n, row.clusters, row.wins, row.losses) == ("new", "old", 100, 100, 30, 10)
    assert (row.system_mean.low, row.system_mean.high) == wilson(80, 100) and row.baseline_mean.value == 0.6
    assert (row.low, row.high) == tango(30, 10, 100) and row.difference == pytest.approx(0.2)
    assert row.p == row.p_holm == mcnemar(30, 10) and row.test == "McNemar, exact"
    assert row.verdict == "better"
    assert row.bootstrap == (pytest.approx(row.low, abs=0.02), pytest.approx(row.high, abs=0.02))
    (back,) = compare([evaluation("new", system), evaluation("old", baseline)]).rows
    assert back.verdict == "worse" and back.difference == -row.difference and back.p == row.p


def test_a_small_difference_is_not_called_one_and_the_items_needed_are_named():
    system, baseline = binary(12, 8, 60, 20)
    (row,) = compare([evaluation("old", baseline), evaluation("new", system)]).rows
    assert row.verdict == "not significantly different" and row.low < 0 < row.high
    assert row.detectable is not None and row.detectable > row.difference
    assert row.needed is not None and row.needed == pytest.approx(100 * (row.detectable / 0.04) ** 2, rel=0.01)


def test_equal_evaluations():
    system, _ = binary(5, 5, 5, 5)
    (row,) = compare([evaluation("a", system), evaluation("a", system)]).rows
    assert (row.difference, row.p, row.verdict, row.needed) == (0, 1, "not significantly different", None)
    assert (row.system, row.baseline) == ("a #2", "a #1")


def test_several_samples_of_an_item_are_one_observation():
    # 20 items of 50 equal samples each: 1,000 samples, but no more to learn from than 20.
    rng = np.random.default_rng(0)
    system = {i: [float(rng.random() < 0.6)] * 50 for i in range(20)}
    baseline = {i: [float(rng.random() < 0.4)] * 50 for i in range(20)}
    (row,) = compare([evaluation("b", baseline), evaluation("a", system)]).rows
    once = [evaluation(name, {i: s[0] for i, s in side.items()}) for name, side in (("b", baseline), ("a", system))]
    (single,) = compare(once).rows
    assert row.n == 20 and row.samples == (50, 50) and single.samples == (1, 1)
    assert (row.p, row.low, row.high) == (single.p, single.low, single.high)
    mixed = {i: [1.0, 0.0, None] if i % 2 else [1.0, 1.0, 0.0] for i in range(20)}
    (row,) = compare([evaluation("b", baseline), evaluation("a", mixed)]).rows
    assert row.system_mean.value == pytest.approx((10 * 0.5 + 10 * 2 / 3) / 20) and row.samples == (2.5, 50)


def test_items_of_one_cluster_count_together():
    # Ten pages of twenty questions; the system is right on whole pages.
    def side(pages):
        rows = [
            Outcome("qa", f"{page}/{q}", float(page in pages), cluster=f"page {page}")
            for page in range(10)
            for q in range(20)
        ]
        return Outcomes("x", "jsonl", tuple(rows))

    (row,) = compare([side({1, 2}), side({1, 2, 3, 4, 5})]).rows
    assert (row.n, row.clusters, row.test) == (200, 10, "sign flips by cluster")
    assert row.p == 2 * 0.5**3 and row.verdict == "not significantly different"
    assert row.low < 0 < row.difference == pytest.approx(0.3)


def test_unpaired_items_are_counted_and_named():
    a = evaluation("a", {"1": 1.0, "2": 0.0, "3": 1.0, "5": None})
    b = evaluation("b", {"1": 0.0, "2": 0.0, "4": 1.0, "5": 1.0})
    report = compare([a, b])
    (gap,), (row,) = report.unpaired, report.rows
    assert (gap.only_system, gap.only_baseline, gap.other_text, gap.examples) == (1, 1, 0, ("4", "3"))
    assert (row.n, row.ungradable) == (2, 1)
    (gap,) = compare([a, evaluation("many", {"1": 1.0, **{f"x{i}": 1.0 for i in range(9)}})]).unpaired
    assert gap.only_system == 9 and gap.examples == ("x0", "x1", "x2", "x3", "x4")


def test_equal_ids_of_different_texts_are_not_paired():
    a = joined("a", evaluation("a", {0: 1.0}, content="x"), evaluation("a", {1: 1.0}, content="y"))
    b = joined("b", evaluation("b", {0: 1.0}, content="x"), evaluation("b", {1: 0.0}, content="z"))
    report = compare([a, b])
    assert report.rows[0].n == 1 and report.unpaired[0].other_text == 1 and report.unpaired[0].examples == ("1",)


def test_task_sets_apart_and_together_and_a_set_that_only_one_has():
    one, other = binary(8, 2, 5, 5), binary(2, 8, 5, 5)
    new = joined(
        "new", *(evaluation("", s[0], t) for t, s in (("x", one), ("y", other))), evaluation("", {0: 1.0}, "z")
    )
    old = joined("old", *(evaluation("", s[1], t) for t, s in (("x", one), ("y", other))))
    report = compare([old, new])
    assert [(row.task_set, row.n) for row in report.rows] == [("x", 20), ("y", 20), ("all", 40)]
    assert report.rows[2].difference == 0 and report.rows[0].difference == -report.rows[1].difference
    assert [(gap.task_set, gap.only_system) for gap in report.unpaired] == [("z", 1)]


def test_equal_cluster_names_in_two_sets_are_two_clusters():
    sides = [
        joined(n, *(evaluation("", {0: s, 1: s}, t, cluster="1") for t in ("x", "y")))
        for n, s in (("b", 0.0), ("a", 1.0))
    ]
    assert [(row.task_set, row.clusters) for row in compare(sides).rows] == [("x", 1), ("y", 1), ("all", 2)]


def test_a_verdict_holds_for_all_comparisons_together():
    system, baseline = binary(12, 3, 10, 10)
    assert compare([evaluation("b", baseline), evaluation("a", system)]).rows[0].verdict == "better"
    equal = [evaluation(f"e{i}", baseline) for i in range(4)]
    report = compare([evaluation("b", baseline), evaluation("a", system), *equal])
    row = report.rows[0]
    assert row.p < 0.05 < row.p_holm == 5 * row.p and row.verdict == "not significantly different"
    assert len(report.rows) == 5 and all(other.baseline == "b" for other in report.rows)
    alone = compare([evaluation("b", baseline), evaluation("a", system)]).rows[0]
    assert row.detectable > alone.detectable


def test_logs_of_different_programs_pair_where_names_leave_no_choice():
    ours, theirs = binary(6, 1, 5, 5)
    a = evaluation("ours", ours, "math", "greedy")
    b = evaluation("theirs", theirs, "gsm8k_cot", "exact_match,strict-match")
    (row,) = compare([b, a]).rows
    assert (row.task_set, row.metric, row.n) == ("gsm8k_cot", "exact_match,strict-match", 17)
    two = joined("two", b, evaluation("", theirs, "gsm8k_cot", "exact_match,flexible-extract"))
    with pytest.raises(UserError, match="share no item"):
        compare([two, a])
    assert compare([two, a], metric="exact_match,strict-match").rows == (replace(row, baseline="two"),)


def test_one_metric_of_several_can_be_chosen():
    system, baseline = binary(6, 1, 5, 5)
    sides = [
        joined(name, evaluation("", scores, metric="greedy"), evaluation("", scores, metric="sampled"))
        for name, scores in (("b", baseline), ("a", system))
    ]
    assert [row.metric for row in compare(sides).rows] == ["greedy", "sampled"]
    assert [row.metric for row in compare(sides, metric="sampled").rows] == ["sampled"]


def test_nothing_in_common_is_an_error():
    with pytest.raises(UserError, match=r"share no item .* math \(score\) with ids such as '1'"):
        compare([evaluation("a", {1: 1.0}), evaluation("b", {2: 1.0})])
    with pytest.raises(UserError, match="share no item"):
        compare([evaluation("a", {1: None}), evaluation("b", {1: 1.0})])
    with pytest.raises(UserError, match="nothing to compare"):
        compare([evaluation("a", {1: 1.0})])


def test_the_command(tmp_path):
    system, baseline = binary(30, 10, 50, 10)
    paths = [str(tmp_path / name) for name in ("old.jsonl", "new.jsonl", "short.jsonl")]
    for path, scores in zip(paths, (baseline, system, {**baseline, "extra": 1.0}), strict=True):
        write_jsonl(Path(path), [{"id": key, "score": score} for key, score in scores.items()])
    found = CliRunner().invoke(app, ["compare", *paths, "--json"])
    report = json.loads(found.stdout)
    assert [row["verdict"] for row in report["rows"]] == ["better", "not significantly different"]
    assert report["rows"][0]["p_holm"] == pytest.approx(2 * mcnemar(30, 10))
    assert report["unpaired"][0]["examples"] == ["extra"]
    # Everything printed follows from the JSON, and a second call gives the same bytes.
    assert CliRunner().invoke(app, ["compare", *paths, "--json"]).stdout == found.stdout
    shown = CliRunner().invoke(app, ["compare", *paths], env={"COLUMNS": "250"}).stdout
    assert "+0.200" in shown and "better" in shown and "1 only in" in shown and "Holm" in shown


def test_the_table_says_how_many_items_samples_and_clusters(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    system, baseline = binary(6, 1, 5, 5)
    print_report(compare([evaluation("b", baseline), evaluation("a", system)]))
    shown = capsys.readouterr().out
    assert " 17 " in shown and " x " not in shown.split("n: items")[0] and "clusters" not in shown.split("n: items")[0]
    assert "Left out" not in shown and "Not paired" not in shown and "0.353" in shown and "0.647" in shown
    sampled = {key: [score, score, 1.0] for key, score in system.items()}
    rows = [replace(row, cluster=str(int(row.id) // 2)) for row in evaluation("b", {**baseline, 16: None}).rows]
    print_report(compare([Outcomes("b", "jsonl", tuple(rows)), evaluation("a", sampled)]))
    shown = capsys.readouterr().out
    assert "16 x 3/1 in 8 clusters" in shown and "sign flips by cluster" in shown
    assert "Left out of math (score): 1 items" in shown


def test_a_comparison_without_spread_has_no_detectable_difference(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    half = dict.fromkeys(range(9), 0.5)
    report = compare([evaluation("b", half), evaluation("a", half)])
    assert report.rows[0].detectable is None and report.rows[0].needed is None
    print_report(report)
    assert " - " in capsys.readouterr().out


def test_systems_that_differ_to_and_fro_alike_are_no_better():
    # Differences of one size in both directions cancel: whatever the p-value, nobody is ahead.
    system, baseline = binary(10, 10, 5, 5)
    (row,) = compare([evaluation("b", baseline), evaluation("a", system)]).rows
    assert (row.difference, row.p, row.verdict, row.needed) == (0, 1, "not significantly different", None)
