"""The verifiers of reasoning-gym, run in the sandbox: what a model wrote meets other people's parsers there.

A row's item names the data set, its settings and the entry, so a stored row is graded without making the data set
again. Not covered: environments of reasoning-gym that answer over several turns.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.sandbox.runner import Job, SandboxPool

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SECONDS = 60.0
"""Time for one batch; the package alone takes some three seconds to import."""
MEMORY_MB = 4096
SOURCE = """
import os, sys
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"
sys.path[:0] = {paths!r}
import reasoning_gym
made = {{}}
def grade(dataset, settings, entry, answer):
    key = repr((dataset, settings))
    if key not in made:
        made[key] = reasoning_gym.create_dataset(dataset, seed=0, size=1, **settings)
    return float(made[key].score_answer(answer, entry))
"""


def answer_of(sample: Sample) -> str:
    """The answer in `<answer>` tags, of which there may be one pair, else all of the text after thinking."""
    text = split_thinking(sample.text)[1] or ""
    tagged = ANSWER.findall(text)
    return tagged[0].strip() if len(tagged) == 1 else text


def package_paths() -> list[str]:
    """Where the package and what it needs lie. Raises `UserError` when it is not installed."""
    found = importlib.util.find_spec("reasoning_gym")
    if found is None or not found.submodule_search_locations:
        raise UserError("The package reasoning-gym is not installed", "pip install 'loopline[reasoning-gym]'")
    beside = str(Path(found.submodule_search_locations[0]).parent)
    numpy = importlib.util.find_spec("numpy")
    other = (
        [str(Path(numpy.submodule_search_locations[0]).parent)] if numpy and numpy.submodule_search_locations else []
    )
    return list(dict.fromkeys([beside, *other]))


def grade_gym(samples: Sequence[Sample], pool: SandboxPool) -> list[Grade]:
    """Grades of reasoning-gym rows, one batch per worker. Raises `UserError` for a row that is none."""
    for sample in samples:
        if not {"dataset", "entry"} <= sample.task.item.keys():
            raise UserError(
                f"The task {sample.task.id} is no row of reasoning-gym",
                "use the grader `reasoning_gym` for its sets only",
            )
    source = SOURCE.format(paths=package_paths())
    size = max(1, -(-len(samples) // pool.size))
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    calls: list[list[list[Any]]] = [
        [
            [one.task.item["dataset"], one.task.item.get("settings") or {}, one.task.item["entry"], answer_of(one)]
            for one in batch
        ]
        for batch in batches
    ]
    jobs = [Job(source, "grade", batch, SECONDS, trusted=True, memory_mb=MEMORY_MB) for batch in calls]
    grades = []
    for results in pool.map(jobs):
        for result in results:
            if result.status == "ok" and isinstance(result.value, float):
                grades.append(
                    Grade(min(1.0, max(0.0, result.value)), evidence=f"score_answer gives {result.value:.3g}")
                )
            elif result.error.startswith(("ModuleNotFoundError", "ImportError")) or result.status == "unavailable":
                grades.append(Grade(None, evidence=result.error, flags=("grader_failed",)))
            else:
                # The verifier itself failed on the text or ran out of time on it.
                why = result.error or result.status
                grades.append(Grade(None, evidence=f"the verifier failed: {why}", flags=("grader_failed",)))
    return grades
