from loopline.report.harness import choose
from tests.report.synthetic import FAMILIES, HOSTILE, STEPS, items


def evaluated(report) -> list[str]:
    rows = [row for row in report["stages"] if row["node_kind"] == "evaluate"]
    return [row["name"].removeprefix("evaluate_") for row in rows]


def test_rollouts_are_early_middle_and_late_with_both_outcomes(full_report):
    rows = full_report["rollouts"]
    assert [(row["step"], row["task_set"]) for row in rows] == [
        (step, task_set) for step in (0, STEPS // 2, STEPS - 1) for task_set in sorted(FAMILIES[:2])
    ]
    for row in rows:
        # The second group of each task set is the one with a right and a wrong sample; one could not be graded.
        assert row["task"].endswith("-1")
        assert [output["score"] for output in row["outputs"]] == [1.0, 0.0]
        assert (row["samples"], row["graded"], row["right"]) == (3, 2, 1)
        assert HOSTILE in row["prompt"]


def test_answers_show_one_solved_and_one_failed_task_of_every_family(full_report):
    last = {row["task"]: row["score"] for row in items("pretrain_control", "sampled")}
    for task_set in FAMILIES:
        tasks = [row["task"] for row in full_report["answers"] if row["task_set"] == task_set]
        assert sorted(last[task] for task in tasks) == [0.0, 1.0]
    first = full_report["answers"][0]
    assert [output["checkpoint"] for output in first["outputs"]] == evaluated(full_report)
    assert first["reference"] == str(int(first["task"].rpartition("-")[2]))
    assert first["prompt"].startswith(first["task_set"])


def test_a_solved_task_that_an_earlier_checkpoint_failed_comes_first(full_report):
    solved = [row for row in full_report["answers"] if row["task_set"] == "ordering"][0]
    scores = {output["checkpoint"]: output["score"] for output in solved["outputs"]}
    assert scores["align"] == 1.0
    assert min(scores[name] for name in ("sft", "grpo", "reject")) == 0.0


def test_traces_prefer_a_wrong_attempt_that_called_a_tool():
    rows = [
        {"task": "a", "score": 0.0, "calls": []},
        {"task": "b", "score": None, "calls": []},
        {"task": "c", "score": 0.0, "calls": [{"name": "search"}]},
        {"task": "d", "score": 1.0, "calls": []},
    ]
    assert [row["task"] for row in choose(rows)] == ["d", "c"]
    assert choose(rows[1:2]) == []
