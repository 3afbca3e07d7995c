"""GRPO killed again and again at random moments: the final bytes, and which samples were trained on, do not change."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support_stages import world
from throughline.base.files import read_jsonl
from throughline.store.artifact import content_digest

__all__ = ["world"]
CONFIG = {
    "steps": 14,
    "prompts_per_step": 6,
    "group_size": 4,
    "temperature": 1.4,
    "max_new_tokens": 10,
    "shares": {"arithmetic": 0.7, "ordering": 0.3},
    "runtime": {"save_every": 2},
}
PLAIN = {}
EVERYTHING = {
    "updates_per_rollout": 2,
    "dynamic_sampling": 2,
    "kl_coefficient": 0.01,
    "importance_correction": "token_truncate",
    "rollout": {
        "staleness": 1,
        "old_logprobs": "trainer",
        "no_think_share": 0.25,
        "runtime": {"background": "thread"},
    },
}


class Forks:
    """Runs started by a process that has imported everything."""

    def __init__(self, world):
        paths = {name: str(world[name].path) for name in ("tasks", "graders", "policy")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.rl.killed", json.dumps(paths)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, path, config):
        self.process.stdin.write(json.dumps({"dir": str(path), "config": config}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self):
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def forks(world):
    forks = Forks(world)
    yield forks
    forks.close()


def trained(path):
    rows = read_jsonl(path / "out/log/trained.jsonl")
    return Counter((row["step"], row["rollout"], row["task"], row["group"], row["sample"]) for row in rows)


@pytest.mark.parametrize("changes", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_ten_kills_change_no_byte_and_no_sample(world, forks, tmp_path, changes):
    config = {**CONFIG, **changes}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    began = time.monotonic()
    forks.start(whole, config)
    assert forks.status() == 0
    took = time.monotonic() - began
    generator = random.Random(len(changes))
    alive = resumable = 0
    for number in range(10):
        process = forks.start(torn, config)
        # Early ones mostly die while they load; later ones anywhere up to the end.
        time.sleep(generator.uniform(0.0, min(1.0, 0.2 + number / 10)) * took * 0.6)
        resumable += (torn / "state/training.pt").exists()
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            alive += 1
        status = forks.status()
        assert status in (-9, 0)
        if status == 0:
            break
    else:
        forks.start(torn, config)
        assert forks.status() == 0
    assert resumable >= 2, "resuming was not put to the test"
    assert content_digest(whole / "out") == content_digest(torn / "out")
    assert trained(whole) == trained(torn) and sum(trained(whole).values()) > 40
    assert [row["step"] for row in read_jsonl(torn / "out/log/metrics.jsonl")] == list(range(14))
    ids = Counter(key[1:] for key in trained(torn).elements())
    assert max(ids.values()) == 1, "a sample was trained on twice"
