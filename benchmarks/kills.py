"""Is training unkillable? `loopline sft`, `dpo` and `grpo` killed a hundred times, against runs never disturbed.

    .venv/bin/python benchmarks/kills.py             # a hundred kills
    .venv/bin/python benchmarks/kills.py --quick     # six

Each command trains a small model of random weights. It is started, killed with SIGKILL at a random moment and started
again in the same way, at most `EACH` times before it is left to end; then the next run begins in an empty directory,
until the kills are used up. A run passes when the artifact's digest, which covers the final weights and GRPO's rollouts
but not the log, equals that of the run left alone, and the store finds nothing damaged. `resumed` counts the kills that
left a saved state to go on from. Writes `benchmarks/results/kills.json`. Not covered: machines that lose power (no
fsync is skipped, but none is tested here), and the stages of a recipe (`tests/test_crash.py`).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

from loopline.base.files import write_jsonl
from loopline.short_recipes import Request, run_command
from loopline.store.store import Store

SEED = 11
EACH = 4
"""Kills of a run at most; then it may end."""
STEPS = {"sft": 120, "dpo": 100, "grpo": 80}
QUICK = {"sft": 24, "dpo": 20, "grpo": 20}
TUNE = ("runtime.save_every=2", "optimizer.learning_rate=0.001", "sequence_length=128")
SETTINGS: dict[str, tuple[str, ...]] = {
    "sft": (*TUNE, "batch_size=16", "rows_per_batch=2"),
    "dpo": (*TUNE, "batch_size=8", "rows_per_batch=4"),
    "grpo": (
        "runtime.save_every=2",
        "learning_rate=0.001",
        "prompts_per_step=4",
        "group_size=4",
        "max_new_tokens=32",
    ),
}


def prepare(root: Path) -> None:
    """The model, and a file of rows for each command."""
    import worlds

    worlds.save_random(worlds.SHAPES["tiny"], root / "model", length=256, mean_tokens=24)
    worlds.compile_sampling(root / "model")
    words = worlds.make_prompts(root / "model", [12] * 256, SEED)
    rows = [{"prompt": words[i], "completion": words[i + 1], "answer": words[i + 1]} for i in range(0, 192, 2)]
    write_jsonl(root / "sft.jsonl", [{name: row[name] for name in ("prompt", "completion")} for row in rows])
    write_jsonl(root / "grpo.jsonl", [{name: row[name] for name in ("prompt", "answer")} for row in rows])
    pairs = [
        {"prompt": row["prompt"], "chosen": row["answer"], "rejected": words[192 + number % 64]}
        for number, row in enumerate(rows)
    ]
    write_jsonl(root / "dpo.jsonl", pairs)
    (root / "grader.py").write_text(GRADER)


GRADER = '''"""Pays for short words, of which random weights write some: every group has answers better than others."""


def grade(sample, item):
    words = sample["output_text"].split() or [""]
    return sum(len(word) < 5 for word in words) / len(words)
'''


def start(log: Path, work: Callable[[], object]) -> int:
    """Fork a process that does the work; returns its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Command:
    """One of the commands, on the data below `root`."""

    def __init__(self, name: str, root: Path, steps: int) -> None:
        self.name, self.root = name, root
        self.overrides = (*SETTINGS[name], f"steps={steps}")
        self.log = root / f"{name}.log"

    def start(self, out: Path) -> int:
        grader = {"grader": str(self.root / "grader.py"), "force_grader": True} if self.name == "grpo" else {}
        data = self.root / f"{self.name}.jsonl"
        request = Request(
            self.name,
            str(self.root / "model"),
            out,
            str(data),
            overrides=self.overrides,
            seed=SEED,
            threads=1,
            **grader,
        )
        return start(self.log, lambda: run_command(request, say=lambda text: print(text, flush=True)))

    def check(self, status: int) -> None:
        """Raises `SystemExit` with what the run said if it failed."""
        if status:
            raise SystemExit(f"{self.name} failed:\n{self.log.read_text()[-2000:]}")

    def alone(self, out: Path) -> float:
        """Run undisturbed; returns the seconds."""
        began = time.monotonic()
        self.check(os.waitpid(self.start(out), 0)[1])
        return time.monotonic() - began

    def killed(self, out: Path, moments: list[float]) -> tuple[int, int]:
        """Run and kill after each of the moments (seconds); returns the kills and how many left a saved state."""
        kills = resumed = 0
        for moment in [*moments, float("inf")]:
            child, began = self.start(out), time.monotonic()
            while time.monotonic() - began < moment:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self.check(status)
                    return kills, resumed
                time.sleep(0.005)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills, resumed = kills + 1, resumed + any(out.glob("work/*/state/*"))
        raise AssertionError("unreachable: the last moment never comes")


def digest(out: Path, stage: str) -> str:
    """Digest of the stage's artifact, after the store has checked everything."""
    store = Store(out)
    problems = store.verify()
    if problems:
        raise SystemExit(f"{stage}: the store is damaged: {problems}")
    return store.artifacts(stage)[0].digest


def row_of(name: str, root: Path, steps: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill one command `kills` times."""
    command, out = Command(name, root, steps), root / "killed"
    seconds = command.alone(root / f"alone-{name}")
    expected = digest(root / f"alone-{name}", name)
    row: dict[str, Any] = {"stage": name, "kills": 0, "resumed": 0, "runs": 0, "equal": 0, "digest": expected}
    row |= {"steps": steps, "seconds_alone": round(seconds, 2)}
    while row["kills"] < kills:
        shutil.rmtree(out, ignore_errors=True)
        count = min(EACH, kills - row["kills"])
        done, resumed = command.killed(out, [rng.uniform(0.02, 0.7) * seconds for _ in range(count)])
        row["kills"] += done
        row["resumed"] += resumed
        row["runs"] += 1
        row["equal"] += digest(out, name) == expected
    print(
        f"{name}: killed {row['kills']} times over {row['runs']} runs, going on from a saved state {row['resumed']} "
        f"times; {row['equal']} of {row['runs']} ended like the run left alone",
        flush=True,
    )
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written: `ratio` is the share of killed runs that ended in the bytes of the undisturbed run."""
    shares = [row["equal"] / row["runs"] for row in rows]
    return {
        "what": "killed runs that ended in the undisturbed run's bytes, over all killed runs",
        "ratio": sum(row["equal"] for row in rows) / sum(row["runs"] for row in rows),
        "low": min(shares),
        "high": max(shares),
        "n": sum(row["runs"] for row in rows),
        "kills": sum(row["kills"] for row in rows),
        "rows": rows,
        "settings": {"seed": SEED, "kills_of_a_run": EACH, **{name: list(words) for name, words in SETTINGS.items()}},
        "versions": common.versions(),
    }


def main() -> None:
    """Spread the kills over the commands, and write what came of it."""
    # Children inherit these by forking, so that a kill seldom hits the loading of torch and what its optimizers load.

    import loopline.posttrain.grpo  # noqa: F401

    arguments = common.parse(__doc__, lambda parser: parser.add_argument("--kills", type=int, default=100))
    kills, steps = (6, QUICK) if arguments.quick else (arguments.kills, STEPS)
    rng, rows = random.Random(SEED), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if os.waitpid(start(root / "prepare.log", lambda: prepare(root)), 0)[1]:
            raise SystemExit(f"The model could not be made:\n{(root / 'prepare.log').read_text()[-2000:]}")
        for number, name in enumerate(SETTINGS):
            share = (kills * (number + 1)) // len(SETTINGS) - (kills * number) // len(SETTINGS)
            rows.append(row_of(name, root, steps[name], share, rng))
    common.finish("kills", summary(rows), arguments)
    if any(row["equal"] != row["runs"] for row in rows):
        raise SystemExit("a killed run ended in other bytes")


if __name__ == "__main__":
    main()
