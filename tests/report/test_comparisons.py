import math

import pytest

from loopline.evaluation.statistics import holm, paired_comparison
from loopline.report.comparisons import Answers, compare_pair, comparisons
from loopline.report.run import Run
from tests.report.synthetic import FAMILIES, RATES, items

REASONING = ("arithmetic", "word_problem", "ordering")
HARNESS = ("harness:best", "harness:first")


def scores(name: str, mode: str, task_sets: tuple[str, ...]) -> dict[str, float | None]:
    return {row["task"]: row["score"] for row in items(name, mode) if row["task_set"] in task_sets}


def test_every_evaluated_checkpoint_stands_beside_what_it_was_made_from(full_report):
    pairs = list(dict.fromkeys((row["a"], row["b"]) for row in full_report["comparisons"]))
    nodes = [row for row in full_report["stages"] if row["node_kind"] == "evaluate"]
    evaluated = [row["name"].removeprefix("evaluate_") for row in nodes]
    # The first stands alone; every later one is there, gain or loss.
    assert [a for a, _ in pairs] == [*evaluated[1:], HARNESS[0]]
    before = dict(pairs)
    assert before["quantize"] == "align" and before["pretrain_next"] == before["pretrain_control"] == "pretrain"
    # A release stands for its champion.
    assert before["retrain"] == full_report["release"]["champion"] == "align"


def test_a_recorded_control_is_compared_too(full_run):
    run = Run.load(full_run)
    run.artifacts["grpo"].meta["metrics"]["control"] = "pretrain"
    pairs = {(row["a"], row["b"]) for row in comparisons(run)}
    assert {("grpo", "sft"), ("grpo", "pretrain")} <= pairs


def test_every_pair_is_compared_on_every_task_set_tag_and_mode(full_report):
    rows = full_report["comparisons"]
    for pair in {(row["a"], row["b"]) for row in rows} - {HARNESS}:
        seen = {(row["task"], row["metric"]) for row in rows if (row["a"], row["b"]) == pair}
        names = ("tag:reasoning", *FAMILIES)
        assert seen == {(task, f"{mode} pass@1") for task in names for mode in ("sampled", "greedy")}


@pytest.mark.parametrize("mode", ["sampled", "greedy"])
@pytest.mark.parametrize("task", ["tag:reasoning", "safety", "code"])
def test_numbers_are_those_of_the_statistics_called_directly(full_report, task, mode):
    row = next(
        row
        for row in full_report["comparisons"]
        if (row["a"], row["b"], row["task"], row["metric"]) == ("grpo", "sft", task, f"{mode} pass@1")
    )
    task_sets = REASONING if task == "tag:reasoning" else (task,)
    left, right = scores("grpo", mode, task_sets), scores("sft", mode, task_sets)
    names = sorted(left)
    found = paired_comparison([left[name] for name in names], [right[name] for name in names], seed=row["seed"])
    for key in ("n", "difference", "low", "high", "p", "better", "ungradable"):
        assert row[key] == getattr(found, key)
    # And by hand: the tasks only one of them solved decide.
    graded = [name for name in names if left[name] is not None]
    wins = sum(left[name] > right[name] for name in graded)
    losses = sum(left[name] < right[name] for name in graded)
    assert row["difference"] == pytest.approx((wins - losses) / len(graded))
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    assert row["p"] == pytest.approx(min(1, 2 * tail))
    assert row["ungradable"] == (1 if task == "code" else 0)


def test_holm_runs_over_the_rows_of_a_pair_and_mode(full_report):
    rows = [
        row
        for row in full_report["comparisons"]
        if (row["a"], row["b"], row["metric"]) == ("sft", "pretrain", "sampled pass@1")
    ]
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    for row in rows:
        assert row["better_holm"] == (row["better"] if row["p_holm"] < 0.05 else None)
    assert RATES["sft"] > RATES["pretrain"] and rows[0]["better_holm"] == "a"


def test_equal_checkpoints_are_not_told_apart(full_report):
    rows = [row for row in full_report["comparisons"] if (row["a"], row["b"]) == ("quantize", "align")]
    assert {(row["difference"], row["p"], row["better"]) for row in rows} == {(0.0, 1.0, None)}


def test_answers_to_different_task_sets_are_never_compared():
    rows = items("sft", "sampled")
    one, same, other = (Answers(name, rows, tasks) for name, tasks in (("a", "x"), ("b", "x"), ("c", "y")))
    assert compare_pair(one, same, "?")
    assert compare_pair(one, other, "?") == []
    assert compare_pair(one, None, "?") == []


def test_pairs_without_a_graded_item_are_left_out():
    known = [row for row in items("sft", "sampled") if row["task_set"] == "code"]
    unknown = [{**row, "score": None} for row in known]
    assert compare_pair(Answers("a", known, None), Answers("b", unknown, None), "?") == []
