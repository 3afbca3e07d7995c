"""What the benchmarks share: processes of their own, peak memory, ratios over repeats, versions, the result file.

    seconds = common.run_job(__file__, {"side": "ours", "seed": 0})     # runs `script --job FILE`
    common.finish("name", result, arguments)                            # writes results/name.json unless --quick

Each side of a comparison runs in a process of its own, so that neither inherits the other's threads or memory, and with
the same environment. Not covered: what is measured (each script's docstring).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ENVIRONMENT = {
    # Both sides wait at thread barriers the same way; see `loopline.__init__` for why passively.
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}


def parse(description: str, add: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """The arguments that every benchmark takes, and those that `add` adds."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under 50 s; writes no result")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="where to write the result instead")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    if add is not None:
        add(parser)
    arguments = parser.parse_args()
    if arguments.job:
        arguments.job = Path(arguments.job).read_text()
    return arguments


def run_job(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `script --job FILE` in a fresh process; returns what it passed to `answer`.

    What the job prints is shown only when it fails. Raises `RuntimeError` then.
    """
    with tempfile.TemporaryDirectory() as directory:
        # Through a file, since a job may hold more than a command line takes.
        result, order = Path(directory) / "result.json", Path(directory) / "job.json"
        order.write_text(json.dumps({**job, "result": str(result)}))
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(job["threads"])}
        command = [sys.executable, script, "--job", str(order)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=directory)
        if done.returncode or not result.exists():
            shown = {name: value for name, value in job.items() if isinstance(value, str | int | float)}
            raise RuntimeError(f"{Path(script).name} failed on {shown}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return dict(json.loads(result.read_text()))


def answer(job: dict[str, Any], result: dict[str, Any]) -> None:
    """Hand a job's result back to `run_job`."""
    Path(job["result"]).write_text(json.dumps(result))


class Memory:
    """Peak resident memory of this process since the object was made, in bytes, from Linux's /proc.

    `held` leaves out what was there before (imports, and whatever was loaded); `peak` is everything.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = resident("VmRSS")

    @property
    def peak(self) -> int:
        return resident("VmHWM")

    @property
    def held(self) -> int:
        return self.peak - self.before


def resident(name: str) -> int:
    """This process's resident size (VmRSS) or its peak (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the repeats' ratios."""
    return {"ratio": statistics.median(values), "low": min(values), "high": max(values)}


def alternate(sides: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, side): who goes first changes, so that neither side profits from a machine that warms up or tires."""
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            yield repeat, side


@contextlib.contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append the seconds that the block took."""
    began = time.perf_counter()
    yield
    into.append(time.perf_counter() - began)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, Loopline, torch and `packages`."""
    found = {"python": platform.python_version()}
    for name in ("loopline", "torch", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """The processor and its number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "Hardware"))
    ]
    return {"processor": names[0] if names else platform.machine(), "cores": os.cpu_count()}


def finish(name: str, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write `results/NAME.json`, or to `--out`; a quick run without `--out` writes nothing."""
    result = {"benchmark": name, "quick": arguments.quick, "machine": machine(), **result}
    out = arguments.out or (None if arguments.quick else RESULTS / f"{name}.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
        print(f"wrote {out}")
