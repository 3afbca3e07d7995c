import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.pipeline import run_line
from loopline.report.data import build_report
from loopline.report.page import write_report
from loopline.store.artifact import content_digest
from tests.report import synthetic
from tests.report.synthetic import make_run, synthetic_recipe

ASKED = {}


def look(config, inputs, ctx) -> None:
    """A stage that reads the report of its own run while it runs."""
    synthetic.log_steps(ctx, 3)
    ASKED["report"] = build_report(ctx.out.parents[2])
    synthetic.checkpoint(ctx)


def test_a_finished_run_lists_every_stage_with_the_content_it_has_on_disk(full_run, full_report):
    rows = full_report["stages"]
    assert [row["name"] for row in rows] == [node.name for node in synthetic_recipe().nodes]
    assert {row["state"] for row in rows} == {"done"}
    for row in rows:
        assert row["digest"] == content_digest(full_run / row["path"])
        assert row["why"] == "never ran before"
    assert full_report["run"] == {
        "name": "demo",
        "seed": 3,
        "state": "done",
        "seconds": pytest.approx(sum(row["seconds"] for row in rows), abs=0.01),
        "done": len(synthetic_recipe().nodes),
        "total": len(synthetic_recipe().nodes),
    }


def test_evaluations_are_the_rows_of_every_summary(full_run, full_report):
    on_disk = [
        row
        for stage in full_report["stages"]
        if stage["name"].startswith("evaluate_") or stage["name"] == "harness"
        for row in read_json(full_run / stage["path"] / "summary.json")["evaluations"]
    ]
    assert len(full_report["evaluations"]) == len(on_disk)
    for found, row in zip(full_report["evaluations"], on_disk, strict=True):
        for key in ("checkpoint", "task", "metric", "n", "value", "low", "high", "seed", "ungradable"):
            assert found[key] == row[key]
    assert len(full_report["bits_per_byte"]) == 11 * len(synthetic.SOURCES)


def test_release_and_loops_are_what_the_artifacts_decided(full_run, full_report):
    release = full_report["release"]
    assert release["champion"] == "align" and release["value"] == 0.7
    assert read_json(full_run / release["path"] / "release.json")["reasons"] == release["reasons"]
    assert (full_run / release["model"] / "config.json").exists()
    loops = {loop["name"]: loop for loop in full_report["loops"]}
    assert set(loops) == {"traffic", "benchmarks"}
    assert (loops["traffic"]["before"], loops["traffic"]["after"]) == ("align", "retrain")
    assert {loop["decision"] for loop in loops.values()} == {"promote"}


def test_the_report_is_json_and_the_same_every_time(full_run, full_report):
    assert json.loads(json.dumps(full_report, allow_nan=False)) == build_report(full_run)
    assert str(full_run) not in json.dumps(full_report)


def test_a_run_that_stopped_at_an_earlier_stage_invents_nothing(tmp_path):
    report = build_report(make_run(tmp_path / "demo", until="evaluate_sft"))
    states = {row["name"]: row["state"] for row in report["stages"]}
    assert states["evaluate_sft"] == "done" and states["grpo"] == "pending"
    assert report["run"]["state"] == "partly done"
    assert {row["checkpoint"] for row in report["evaluations"]} <= {"pretrain", "sft"}
    assert {(row["a"], row["b"]) for row in report["comparisons"]} <= {("sft", "pretrain")}
    assert report["release"] is None and report["loops"] == [] and report["harness"] is None
    assert report["rollouts"] == [] and report["mixture"] == [] and report["traffic_funnel"] == []
    pending = next(row for row in report["stages"] if row["name"] == "grpo")
    assert [pending[key] for key in ("seconds", "digest", "path", "config")] == [None] * 4


def test_a_line_of_one_evaluation_has_a_report(tmp_path):
    recipe = synthetic_recipe()
    names = ("tasks", "graders", "raw", "data", "plan", "pretrain", "evaluate_pretrain")
    short = replace(recipe, nodes=tuple(node for node in recipe.nodes if node.name in names))
    run_line(short, tmp_path)
    report = build_report(tmp_path)
    assert {row["checkpoint"] for row in report["evaluations"]} == {"pretrain"}
    assert report["comparisons"] == [] and report["headlines"] == [] and report["release"] is None
    assert "There is no stage of the kind <code>release</code>" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_failed_stage_is_named_and_keeps_its_curve(tmp_path):
    recipe = synthetic_recipe({"grpo": "tests.report.synthetic:fail"})
    with pytest.raises(RuntimeError, match="out of luck"):
        run_line(recipe, tmp_path)
    report = build_report(tmp_path)
    assert report["run"]["state"] == "failed"
    assert "grpo: RuntimeError: out of luck" in report["sentence"]
    assert report["curves"]["grpo"]["finished"] is False
    assert report["curves"]["grpo"]["steps"] == [0, 1, 2, 3]
    assert report["curves"]["grpo"]["series"]["loss"] == [5.0, 4.75, 4.5, None]


def test_a_running_stage_is_seen_from_outside(tmp_path):
    run_line(synthetic_recipe({"sft": "tests.report.test_data:look"}), tmp_path, until="sft")
    seen = ASKED["report"]
    states = {row["name"]: row["state"] for row in seen["stages"]}
    assert states["sft"] == "running" and seen["run"]["state"] == "running"
    assert seen["curves"]["sft"]["steps"] == [0, 1, 2]
    assert "at sft" in seen["sentence"]


def test_a_killed_run_is_interrupted_not_running(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.report.synthetic import synthetic_recipe\n"
        "from loopline.pipeline import run_line\n"
        "run_line(synthetic_recipe({'sft': 'tests.report.synthetic:die'}), Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert {row["name"]: row["state"] for row in read_json(tmp_path / "run.json")["stages"]}["sft"] == "running"
    report = build_report(tmp_path)
    assert report["run"]["state"] == "interrupted"
    assert next(row for row in report["stages"] if row["name"] == "sft")["state"] == "interrupted"
    # The line that the kill tore is left out.
    assert report["curves"]["sft"]["steps"] == [0, 1, 2, 3]


def test_without_a_run_the_fix_is_named(tmp_path):
    with pytest.raises(UserError, match="loopline run"):
        build_report(tmp_path)


def test_a_lost_artifact_is_an_error_and_not_a_gap(tmp_path):
    run_dir = make_run(tmp_path / "demo", until="plan")
    path = next(row["path"] for row in build_report(run_dir)["stages"] if row["name"] == "plan")
    (run_dir / path / "artifact.json").unlink()
    with pytest.raises(UserError, match="not a finished artifact"):
        build_report(run_dir)
