"""GRPO killed again and again, at random moments: the final bytes, and which samples were trained on, do not change."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loopline.base.files import read_jsonl
from loopline.store.artifact import content_digest
from tests.support_stages import world

__all__ = ["world"]
CONFIG = {
    "steps": 12,
    "prompts_per_step": 6,
    "group_size": 4,
    "temperature": 1.4,
    "max_new_tokens": 10,
    "tasks": {"arithmetic": 0.7, "ordering": 0.3},
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

    def run(self, path, config, moment=0):
        """Run to the end, or to death at a moment; returns the status."""
        self.process.stdin.write(json.dumps({"dir": str(path), "config": config, "moment": moment}) + "\n")
        self.process.stdin.flush()
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
def test_kills_at_any_moment_change_no_byte_and_no_sample(world, forks, tmp_path, changes):
    config = {**CONFIG, **changes}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert forks.run(whole, config) == 0
    generator = random.Random(len(changes))
    kills = resumable = 0
    for _ in range(12):
        resumable += (torn / "state/training.pt").exists()
        status = forks.run(torn, config, generator.randint(1, 60))
        assert status in (-9, 0)
        kills += status == -9
    assert kills >= 10 and resumable >= 4, "resuming was not put to the test"
    assert forks.run(torn, config) == 0
    assert content_digest(whole / "out") == content_digest(torn / "out")
    assert trained(whole) == trained(torn) and sum(trained(whole).values()) > 30
    assert [row["step"] for row in read_jsonl(torn / "out/log/metrics.jsonl")] == list(range(12))
    ids = Counter(key[1:] for key in trained(torn).elements())
    assert max(ids.values()) == 1, "a sample was trained on twice"
