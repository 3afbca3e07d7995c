"""Is training unkillable? SFT, GRPO and alignment (DPO) killed a hundred times, against runs never disturbed.

    .venv/bin/python benchmarks/kills.py             # a hundred kills
    .venv/bin/python benchmarks/kills.py --quick     # six

Each stage of the smoke recipe starts from the same finished stages before it. It is started, killed with SIGKILL at a
random moment and started again by the same command until it ends; then it is put back and killed again, until the
kills are used up. A round passes when the artifact's digest, which covers the final weights, equals that of the
undisturbed run. Writes `benchmarks/results/kills.json`. Not covered: machines that lose power (no fsync is skipped, but
none is tested here).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from throughline.base.files import write_json
from throughline.cli import app
from throughline.store.store import Store

RESULT = Path(__file__).resolve().parent / "results" / "kills.json"
STAGES = {"sft": "pretrain", "grpo": "sft", "align": "rft"}
"""Stage to kill -> the stage that its template run ends with."""
EVERY = [f"--set={stage}.runtime.save_every=2" for stage in STAGES]
SEED = 11


def start(directory: Path, until: str) -> int:
    """Fork a process that runs the line as the command does; returns its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with Path(f"{directory}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 1
    with contextlib.suppress(SystemExit):
        app(["run", "smoke", "--dir", str(directory), "--until", until, *EVERY], standalone_mode=False)
        status = 0
    os._exit(status)


def finish(directory: Path, until: str) -> float:
    """Run to the end undisturbed; returns the seconds."""
    began = time.monotonic()
    _, status = os.waitpid(start(directory, until), 0)
    if status:
        raise SystemExit(f"The undisturbed run failed:\n{Path(f'{directory}.log').read_text()[-2000:]}")
    return time.monotonic() - began


def digest(directory: Path, stage: str) -> str:
    """Digest of the stage's artifact."""
    return Store(directory).artifacts(stage)[0].digest


def kill_round(template: Path, directory: Path, stage: str, seconds: float, left: int, rng: random.Random) -> int:
    """Kill the stage at most `left` times on its way to its end; returns how often it was."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(template, directory, symlinks=True)
    kills = 0
    while True:
        child = start(directory, stage)
        until = time.monotonic() + rng.uniform(0.1, 0.6) * seconds if kills < left else float("inf")
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                if status:
                    raise SystemExit(f"{stage} failed:\n{Path(f'{directory}.log').read_text()[-2000:]}")
                return kills
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1


def summary(rows: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, Any]:
    """What is written: `ratio` is the share of killed runs that ended in the bytes of the undisturbed run."""
    shares = [row["equal"] / row["rounds"] for row in rows]
    return {
        "what": "killed runs that ended in the undisturbed run's bytes, over all killed runs",
        "ratio": sum(row["equal"] for row in rows) / sum(row["rounds"] for row in rows),
        "low": min(shares),
        "high": max(shares),
        "n": sum(row["rounds"] for row in rows),
        "kills": sum(row["kills"] for row in rows),
        "rows": rows,
        "settings": {"recipe": "smoke", "seed": SEED},
        "versions": versions,
    }


def main() -> None:
    """Spread the kills over the stages, and write what came of it."""
    import torch  # children inherit it by forking, so that a kill seldom hits the loading of torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    wanted = parser.parse_args()
    kills = 6 if wanted.quick else wanted.kills
    rng, rows = random.Random(SEED), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, (stage, before) in enumerate(STAGES.items()):
            share = (kills * (number + 1)) // len(STAGES) - (kills * number) // len(STAGES)
            template, reference = root / f"before-{stage}", root / f"reference-{stage}"
            if rows:
                shutil.copytree(root / f"reference-{rows[-1]['stage']}", template, symlinks=True)
            finish(template, before)
            if stage == "sft":
                finish(template, "graders")
            shutil.copytree(template, reference, symlinks=True)
            seconds, expected = finish(reference, stage), ""
            expected = digest(reference, stage)
            done, rounds, equal = 0, 0, 0
            while done < share:
                done += kill_round(template, root / "killed", stage, seconds, share - done, rng)
                rounds, equal = rounds + 1, equal + (digest(root / "killed", stage) == expected)
                problems = Store(root / "killed").verify()
                if problems:
                    raise SystemExit(f"{stage}: the store is damaged: {problems}")
            rows.append({"stage": stage, "kills": done, "rounds": rounds, "equal": equal, "digest": expected})
            print(
                f"{stage}: killed {done} times over {rounds} runs, {equal} of them equal the undisturbed run",
                flush=True,
            )
    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if not wanted.quick:
        write_json(RESULT, summary(rows, versions))
    if any(row["equal"] != row["rounds"] for row in rows):
        raise SystemExit("a killed run ended in other bytes")


if __name__ == "__main__":
    main()
