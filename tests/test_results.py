"""The table of a run's scores, and seeds joined."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.results import join_seeds, percent, read_scores, score_table, write_joined


def fake_run(path, values, part="heldout"):
    """A run directory with one evaluation per node."""
    rows = []
    for node, value in values.items():
        numbers = {"n": 100, "value": value, "low": value - 0.1, "high": value + 0.1, "part": part, "ungradable": 0}
        found = [{"task": task, "metric": metric, **numbers}
                 for task in ("sums", "tag:reasoning") for metric in ("sampled pass@1", "greedy pass@1")]  # fmt: skip
        found.append({"task": "books", "metric": "bits_per_byte", "n": 5, "value": 2.0, "low": 1.9, "high": 2.1})
        write_json(path / "store" / f"evaluate_{node}" / "x" / "summary.json", {"evaluations": found})
        rows.append(
            {"name": f"evaluate_{node}", "kind": "evaluate", "area": 6, "stage": "Evaluation", "state": "done"}
            | {"path": f"store/evaluate_{node}/x", "inputs": {"checkpoint": node}}
        )
    write_json(path / "run.json", {"recipe": {"name": "r", "seed": 0}, "stages": rows})
    return path


def test_a_table_has_a_line_per_checkpoint_and_a_column_per_tag(tmp_path):
    run = fake_run(tmp_path, {"sft": 0.5, "grpo": 0.625})
    header, cells = score_table(read_scores(run))
    assert header == ["sampled pass@1, heldout", "reasoning"]
    assert cells == [["sft", "50.0 [40.0, 60.0]"], ["grpo", "62.5 [52.5, 72.5]"]]


def test_without_a_held_out_part_the_development_part_is_shown_and_named(tmp_path):
    header, _ = score_table(read_scores(fake_run(tmp_path, {"sft": 0.5}, part="dev")))
    assert header[0] == "sampled pass@1, dev"


def test_a_run_without_evaluations_has_no_table(tmp_path):
    assert score_table(read_scores(fake_run(tmp_path, {}))) == ([], [])


def test_seeds_are_joined_with_students_interval(tmp_path):
    runs = [fake_run(tmp_path / f"seed-{n}", {"sft": value}) for n, value in enumerate((0.4, 0.5, 0.6))]
    rows = write_joined(tmp_path, runs)
    assert read_json(tmp_path / "seeds.json") == {"runs": ["seed-0", "seed-1", "seed-2"], "scores": rows}
    first = rows[0]
    assert (first["node"], first["seeds"], first["values"]) == ("sft", 3, [0.4, 0.5, 0.6])
    # Mean 0.5, standard deviation 0.1, t(0.975; 2) = 4.3027: half width 4.3027 * 0.1 / sqrt(3) = 0.24842.
    assert first["value"] == pytest.approx(0.5)
    assert first["high"] - first["value"] == pytest.approx(0.24842, abs=1e-4)


def test_runs_of_different_lines_and_single_runs_are_not_joined(tmp_path):
    a, b = fake_run(tmp_path / "a", {"sft": 0.4}), fake_run(tmp_path / "b", {"grpo": 0.4})
    with pytest.raises(UserError, match="have different results"):
        join_seeds([a, b])
    with pytest.raises(UserError, match="at least two"):
        join_seeds([a])


def test_what_could_not_be_graded_has_no_percentage():
    assert percent({"value": None, "low": None, "high": None}) == "-"
