"""Running the line: order, reuse, cut-off, reasons, failures, a full disk, two processes, signals."""

import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
import torch

from loopline.base import files
from loopline.base.config import Config, InputFile
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.base.stage import StageKind, Takes
from loopline.pipeline import plan_line, run_line, seed_of, status, why
from loopline.recipe import parse_recipe
from loopline.store.artifact import content_digest
from loopline.store.context import Metrics
from loopline.store.store import Store
from tests.support_line import CALLS, NUMBERS_KINDS, numbers_raw
from tests.support_line import numbers_recipe as recipe

ALL = ["numbers", "trim", "walk", "total"]


@pytest.fixture(autouse=True)
def _clean():
    """A stage prepares the process for itself; other tests want it as it was."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    CALLS.clear()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def run(run_dir, chosen=None, until=None):
    """Run the fake line; the names of the stages that ran."""
    CALLS.clear()
    run_line(chosen or recipe(), run_dir, until)
    return list(CALLS)


def digests(run_dir):
    return {row.name: row.digest for row in status(run_dir)}


def states(run_dir):
    return {row.name: row.state for row in status(run_dir)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Digests of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("reference")
    run(path)
    return digests(path)


def test_stages_run_once_in_order_and_hand_each_other_files(tmp_path):
    said = []
    done = run_line(recipe(), tmp_path, say=said.append)
    assert CALLS == ALL == list(done)
    numbers = read_json(done["numbers"] / "numbers.json")
    expected = 0
    for number in numbers:
        expected = expected * 3 % 100_003 + number
    assert read_json(done["walk"] / "walk.json") == expected
    assert read_json(done["total"] / "total.json") == expected + sum(numbers)
    assert done["walk"].meta["metrics"] == {"sum": expected}
    begun = [line for line in said if not line.endswith(" s)")]
    assert begun == [f"[{number}/4] {name}" for number, name in enumerate(ALL, start=1)]
    assert re.fullmatch(rf"\[3/4\] walk: sum {expected:,} \(\d+\.\d s\)", said[5])
    assert list((tmp_path / "work").iterdir()) == [] and not (tmp_path / "lease.json").exists()


def test_what_is_done_stays(tmp_path):
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "store").rglob("*"))}
    assert run(tmp_path) == []
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "store").rglob("*"))} == before
    assert states(tmp_path) == dict.fromkeys(ALL, "done")
    assert why(tmp_path, "walk").why == "never ran before"  # Still why it ran when it last ran.


def test_two_runs_give_equal_digests_and_another_seed_gives_others(tmp_path, reference):
    run(tmp_path / "a")
    assert digests(tmp_path / "a") == reference
    run(tmp_path / "b", recipe(seed=1))
    assert not set(digests(tmp_path / "b").values()) & set(reference.values())
    assert run(tmp_path / "a", recipe(seed=1)) == ALL
    numbers = recipe().node("numbers")
    assert why(tmp_path / "a", "numbers").why == (f"seed changed from {seed_of(0, numbers)} to {seed_of(1, numbers)}")


def test_a_changed_setting_runs_its_stage_and_what_follows_and_says_so(tmp_path):
    run(tmp_path)
    changed = recipe(walk={"stride": 2})
    assert run(tmp_path, changed) == ["walk", "total"]
    assert why(tmp_path, "walk").why == "walk.stride changed from 1 to 2"
    assert why(tmp_path, "total").why == "input walk changed its content"
    assert why(tmp_path, "numbers").why == "never ran before"
    assert run(tmp_path, changed) == []
    assert run(tmp_path) == []  # Back again: the first artifacts are still there.


def test_a_stage_that_reproduces_its_bytes_stops_the_rebuild(tmp_path, reference):
    run(tmp_path)
    assert run(tmp_path, recipe(trim={"limit": 99})) == ["trim"]
    assert why(tmp_path, "trim").why == "trim.limit changed from 100 to 99"
    assert digests(tmp_path) == reference
    assert run(tmp_path, recipe(trim={"limit": 3})) == ["trim", "walk", "total"]


def test_a_new_version_of_the_code_runs_again(tmp_path):
    run(tmp_path)
    newer = {**NUMBERS_KINDS, "trim": replace(NUMBERS_KINDS["trim"], version=2)}
    raw = {"compute": {"threads": 1}, **numbers_raw()}
    assert run(tmp_path, parse_recipe(raw, "newer.yaml", kinds=newer)) == ["trim"]
    assert why(tmp_path, "trim").why == "trim's code version changed from 1 to 2"


def test_where_and_how_fast_it_runs_rebuilds_nothing(tmp_path):
    run(tmp_path)
    moved = recipe(threads=2, walk={"pace": {"seconds": 0.001, "save_every": 7}})
    assert run(tmp_path, moved) == []


def test_until_runs_a_stage_and_what_it_needs(tmp_path):
    assert run(tmp_path, until="trim") == ["numbers", "trim"]
    assert states(tmp_path) == {"numbers": "done", "trim": "done", "walk": "pending", "total": "pending"}
    with pytest.raises(UserError, match="no node 'tirm'. Fix: did you mean 'trim'"):
        run(tmp_path, until="tirm")


HERE = "tests.test_pipeline"


def decide(config, inputs, ctx):
    """A gate that promotes."""
    write_json(ctx.out / "decision.json", {"decision": "promote" if config.limit == 1 else "keep"})


def test_the_base_and_the_champion_are_named_and_move(tmp_path):
    numbers, trim = NUMBERS_KINDS["numbers"], NUMBERS_KINDS["trim"]
    kinds = {
        "pretrain": replace(numbers, name="pretrain", gives="checkpoint"),
        "release": replace(trim, name="release", takes={"numbers": Takes("checkpoint")}, gives="release"),
        "retrain": replace(trim, name="retrain", takes={"numbers": Takes("checkpoint")}, gives="checkpoint"),
        "evaluate": replace(trim, name="evaluate", takes={"checkpoint": Takes("checkpoint")}, gives="evaluation",
                            function=f"{HERE}:decide"),
        "gate": replace(trim, name="gate", takes={"after": Takes("evaluation")}, gives="decision",
                        function=f"{HERE}:decide"),
    }  # fmt: skip
    store = Store(tmp_path)
    for limit in (2, 1, 2):
        line = ["pretrain", "release", "retrain", "evaluate", {"gate": {"limit": limit}}]
        done = run_line(parse_recipe({"line": line}, "refs.yaml", kinds=kinds), tmp_path)
        assert store.ref("base").path == done["pretrain"].path
        assert store.ref("champion").path == done["retrain" if limit == 1 else "release"].path


def test_renaming_and_reordering_nodes_runs_nothing_and_a_new_node_only_itself(tmp_path):
    run(tmp_path)
    raw = {"compute": {"threads": 1}, **numbers_raw()}
    raw["line"][1] = {"trim": {}, "name": "shorter"}
    renamed = parse_recipe(raw, "renamed.yaml", kinds=NUMBERS_KINDS)
    assert run(tmp_path, renamed) == []
    assert states(tmp_path) == dict.fromkeys(["numbers", "shorter", "walk", "total"], "done")
    raw["line"].insert(2, {"trim": {"limit": 5}, "name": "five", "from": "numbers"})
    raw["line"][3] = {"walk": {}, "from": "shorter"}
    assert run(tmp_path, parse_recipe(raw, "longer.yaml", kinds=NUMBERS_KINDS)) == ["five"]


def test_a_users_file_counts_by_content_and_not_by_its_path(tmp_path):
    kind = StageKind("read", ReadConfig, f"{HERE}:read", "numbers")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("one")

    def ran(name):
        line = [{"read": {"data": f"{name}.txt"}}]
        return run(tmp_path / "run", parse_recipe({"line": line}, "r.yaml", folder=tmp_path, kinds={"read": kind}))

    assert ran("a") == ["read"] and ran("b") == []
    (tmp_path / "b.txt").write_text("two")
    assert ran("b") == ["read"]
    assert why(tmp_path / "run", "read").why == "input data file changed its content"
    with pytest.raises(UserError, match="r.yaml: read.data names c.txt, and there is no such file"):
        ran("c")


class ReadConfig(Config):
    """Reads a file."""

    data: Annotated[str | None, InputFile()] = None
    """The file."""


def read(config, inputs, ctx):
    CALLS.append(ctx.stage)
    write_json(ctx.out / "read.json", inputs["data"].path.read_text())


def indexed(run_dir):
    with closing(sqlite3.connect(run_dir / "index.sqlite")) as database:
        return sorted(database.execute("SELECT stage, digest FROM artifacts"))


def test_the_index_knows_every_artifact_even_after_a_kill_just_before_it_was_written(tmp_path):
    run(tmp_path)
    old = (tmp_path / "index.sqlite").read_bytes()
    changed = recipe(trim={"limit": 7})
    run(tmp_path, changed)
    present = sorted((item.stage, item.digest) for item in Store(tmp_path).artifacts())
    assert indexed(tmp_path) == present and len(present) == 7
    for leftover in (old, None):
        (tmp_path / "index.sqlite").unlink()
        if leftover is not None:
            (tmp_path / "index.sqlite").write_bytes(leftover)
        assert run(tmp_path, changed) == []
        assert indexed(tmp_path) == present


class Broken(Exception):
    """A defect of a stage."""


@contextmanager
def walk_broken_after(monkeypatch, steps, error):
    """Let `walk` fail in the middle of its way."""
    log = Metrics.log

    def failing(self, step, **values):
        if step == steps:
            raise error
        log(self, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", failing)
        yield


def test_a_failure_is_recorded_and_the_next_run_goes_on_where_it_stopped(tmp_path, monkeypatch, reference):
    broken = walk_broken_after(monkeypatch, 11, Broken("in the middle"))
    with broken, pytest.raises(Broken, match="in the middle"):
        run(tmp_path)
    assert CALLS == ["numbers", "trim", "walk"]
    assert states(tmp_path) == {"numbers": "done", "trim": "done", "walk": "failed", "total": "pending"}
    assert why(tmp_path, "walk").error == "Broken: in the middle"
    assert not (tmp_path / "lease.json").exists()
    assert plan_line(recipe(), tmp_path)[2:] == [
        {"name": "walk", "kind": "walk", "inputs": "trim", "action": "run"}
        | {"why": "an earlier attempt did not finish"},
        {"name": "total", "kind": "total", "inputs": "walk, numbers", "action": "depends", "why": "after walk"},
    ]
    assert run(tmp_path) == ["walk", "total"]
    assert digests(tmp_path) == reference
    walked = Store(tmp_path).artifacts("walk")[0]
    assert read_json(walked / "log" / "began.json") == 9  # Saved every three steps, broken at the twelfth.
    assert [row["step"] for row in files.read_jsonl(walked / "log" / "metrics.jsonl")] == list(range(20))
    assert why(tmp_path, "walk").why == "an earlier attempt did not finish"
    assert not why(tmp_path, "walk").error


def test_a_stage_that_never_wrote_anything_is_recorded_as_failed_too(tmp_path):
    kinds = {"numbers": replace(NUMBERS_KINDS["numbers"], function="tests.support_line:no_such_function")}
    with pytest.raises(AttributeError, match="no_such_function"):
        run(tmp_path, parse_recipe({"line": ["numbers"]}, "broken.yaml", kinds=kinds))
    assert states(tmp_path) == {"numbers": "failed"}


PLANS = {
    "nothing done": recipe(),
    "a setting": recipe(walk={"stride": 3}),
    "same bytes": recipe(trim={"limit": 50}),
    "first stage": recipe(numbers={"count": 9}),
    "last stage": recipe(total={"scale": 2}),
    "seed": recipe(seed=5),
    "nothing": recipe(),
}


def test_the_plan_agrees_with_what_then_runs(tmp_path):
    for name, chosen in PLANS.items():
        plan = plan_line(chosen, tmp_path)
        before = sorted(path for path in tmp_path.rglob("*"))
        assert plan_line(chosen, tmp_path) == plan
        assert sorted(path for path in tmp_path.rglob("*")) == before, "planning changed something"
        ran = run(tmp_path, chosen)
        actions = {row["name"]: row["action"] for row in plan}
        must = {stage for stage, action in actions.items() if action == "run"}
        may = must | {stage for stage, action in actions.items() if action == "depends"}
        assert list(actions) == ALL and must <= set(ran) <= may, name
        for row in plan:
            if row["action"] == "run":
                assert why(tmp_path, row["name"]).why == row["why"], name
        assert {row["action"] for row in plan_line(chosen, tmp_path)} == {"reuse"}


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error", [full(), OSError(errno.EDQUOT, "quota"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_disk_that_fills_up_in_a_stage_is_one_paragraph_and_nothing_is_lost(tmp_path, monkeypatch, reference, error):
    with walk_broken_after(monkeypatch, 11, error), pytest.raises(UserError) as caught:
        run(tmp_path)
    text = str(caught.value)
    assert "\n" not in text and "walk" in text and "free some space and run the same command again" in text
    assert states(tmp_path)["walk"] == "failed"
    assert why(tmp_path, "walk").error == text
    assert Store(tmp_path).verify() == [] and len(Store(tmp_path).artifacts()) == 2
    assert run(tmp_path) == ["walk", "total"]
    assert digests(tmp_path) == reference
    assert read_json(Store(tmp_path).artifacts("walk")[0] / "log" / "began.json") == 9


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_disk_that_fills_up_in_a_commit_loses_nothing(tmp_path, monkeypatch, reference, place):
    real = getattr(os, place)

    def fail(*arguments):
        # The manifest's own writing, and its rename.
        if place == "replace" and str(arguments[1]).endswith("artifact.json") and "/walk-" in str(arguments[1]):
            raise full()
        if (
            place == "fsync"
            and "/walk-" in os.readlink(f"/proc/self/fd/{arguments[0]}")
            and "artifact.json" in (os.readlink(f"/proc/self/fd/{arguments[0]}"))
        ):
            raise full()
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, place, fail)
        with pytest.raises(UserError, match="full.*run the same command again") as caught:
            run(tmp_path)
    assert "\n" not in str(caught.value)
    assert Store(tmp_path).artifacts("walk") == [] and Store(tmp_path).verify() == []
    assert run(tmp_path) == ["walk", "total"]
    assert digests(tmp_path) == reference


def test_errors_that_are_no_full_disk_are_not_called_one(tmp_path, monkeypatch):
    broken = walk_broken_after(monkeypatch, 3, OSError(errno.EIO, "input/output"))
    with broken, pytest.raises(OSError, match="input/output") as caught:
        run(tmp_path)
    assert caught.value.errno == errno.EIO


def test_too_little_room_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 50 * 2**20))
    with pytest.raises(UserError, match="Only 50 MiB are free.*at least 200 MiB.*--dir"):
        run(tmp_path)
    assert CALLS == [] and not (tmp_path / "store").exists() and not (tmp_path / "lease.json").exists()


def test_a_damaged_artifact_deleted_as_verify_advises_comes_back_the_same(tmp_path, reference):
    run(tmp_path)
    store = Store(tmp_path)
    walked = store.artifacts("walk")[0]
    write_json(walked / "walk.json", 1)
    damaged = store.verify()
    assert damaged == [walked.path.relative_to(tmp_path).as_posix()]
    shutil.rmtree(tmp_path / damaged[0])
    assert run(tmp_path) == ["walk"]
    assert digests(tmp_path) == reference and store.verify() == []


def test_an_absent_run_and_an_unknown_stage_are_refused(tmp_path):
    with pytest.raises(UserError, match="no run in .*--dir"):
        status(tmp_path)
    run(tmp_path, until="numbers")
    with pytest.raises(UserError, match="no node 'wlak'.*numbers, trim, walk, total"):
        why(tmp_path, "wlak")


def start_slow_walk(tmp_path):
    """The command line in a real process, in the middle of `walk`."""
    chosen = tmp_path / "slow.yaml"
    chosen.write_text(
        "name: fake\ncompute: {threads: 1}\nline:\n  - numbers\n  - trim\n"
        "  - walk: {pace: {seconds: 0.2, save_every: 1}}\n  - {total: {}, inputs: {numbers: numbers}}\n"
    )
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "tests.support_line", "numbers", "run", str(chosen), "--dir", str(run_dir)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 30
    while not list(run_dir.glob("work/walk-*/state/walk.json")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)
    return process, run_dir


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_process_is_refused_and_signals_stop_the_first_in_order(tmp_path, reference, number):
    process, run_dir = start_slow_walk(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {process.pid} "):
        run(run_dir)
    assert CALLS == []
    assert process.poll() is None and states(run_dir)["walk"] == "running"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert re.search(r"^loopline: stopped; run the same command again to go on$", err, re.MULTILINE)
    assert "Traceback" not in err and out == ""
    assert states(run_dir)["walk"] == "interrupted"
    assert not (run_dir / "lease.json").exists()
    assert run(run_dir) == ["walk", "total"]
    assert digests(run_dir) == reference
    assert read_json(Store(run_dir).artifacts("walk")[0] / "log" / "began.json") >= 1


def test_a_stage_that_only_read_its_inputs_left_them_as_they_were(tmp_path):
    run(tmp_path)
    for artifact in Store(tmp_path).artifacts():
        assert content_digest(artifact.path) == artifact.digest
