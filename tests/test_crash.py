"""A run killed again and again, each time started by the same command, ends in the bytes of one never disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from loopline.base.files import read_json, read_jsonl
from loopline.store.store import Store

KILLS = 10
RECIPE = """
name: killed
seed: 3
compute: {threads: 1}
line:
  - numbers
  - pretrain: {steps: 24, pace: {seconds: 0.03, save_every: 2}}
  - sft: {steps: 24, pace: {seconds: 0.03, save_every: 2}}
  - walk: {steps: 60, pace: {seconds: 0.05, save_every: 2}}
  - total
"""
WORK = 24 * 0.03 + 24 * 0.03 + 60 * 0.05
"""Seconds that the steps take at the very least."""
STEPS = {"pretrain": 24, "sft": 24, "walk": 60}


def command(*words):
    return [sys.executable, "-m", "tests.support_line", "training", *map(str, words)]


def start(words, **pipes):
    return subprocess.Popen(command(*words), cwd=Path(__file__).parents[1], text=True, **pipes)


def curves(run_dir):
    """How far the stages are; changes with every step."""
    return {path: path.stat().st_size for path in run_dir.glob("*/*/out/log/metrics.jsonl")}


def wait_for(condition, run_dir):
    until = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < until, f"{run_dir} does not move"
        time.sleep(0.01)


def test_ten_kills_at_random_moments_change_no_byte(tmp_path):
    recipe, killed = tmp_path / "killed.yaml", tmp_path / "killed"
    recipe.write_text(RECIPE)
    words = ["run", recipe, "--dir", killed]
    generator = random.Random(7)
    moments = [generator.uniform(0.02, 0.5) for _ in range(KILLS)]
    assert sum(moments) < 0.75 * WORK, "the line would be done before the last kill"

    undisturbed = start(["run", recipe, "--dir", tmp_path / "undisturbed"], stderr=subprocess.PIPE)
    first = start(words, stderr=subprocess.DEVNULL)
    wait_for(lambda: curves(killed), killed)
    time.sleep(moments[0])
    first.kill()
    assert first.wait() == -9

    # Loading torch takes longer than the work: the other nine get it from a process that forks.
    forks = start(["forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    resumable = 0
    for number, moment in enumerate(moments[1:]):
        resumable += any(killed.glob("work/*/state/*"))
        before = curves(killed)
        forks.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        forks.stdin.flush()
        process = int(forks.stdout.readline())
        if number % 3:  # The others die while they still begin, or soon after.
            wait_for(lambda before=before: curves(killed) != before, killed)
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        assert int(forks.stdout.readline()) == -9
        assert Store(killed).verify() == []
    forks.stdin.close()
    assert forks.wait(timeout=10) == 0
    final = start(words, stderr=subprocess.PIPE)
    said = final.communicate(timeout=60)[1]
    assert final.returncode == 0, said
    said = undisturbed.communicate(timeout=60)[1]
    assert undisturbed.returncode == 0, said

    runs = [Store(tmp_path / name) for name in ("undisturbed", "killed")]
    expected, found = ({(item.stage, item.identity): item.digest for item in store.artifacts()} for store in runs)
    assert found == expected and len(found) == 5
    assert runs[1].verify() == []
    assert [row["state"] for row in read_json(killed / "run.json")["stages"]] == ["done"] * 5
    assert list((killed / "work").iterdir()) == []
    for stage, steps in STEPS.items():
        curve = runs[1].artifacts(stage)[0] / "log" / "metrics.jsonl"
        assert [row["step"] for row in read_jsonl(curve)] == list(range(steps)), f"{stage} wrote a step twice or never"
    # Resuming was put to the test, not only starting over.
    assert resumable >= 4
