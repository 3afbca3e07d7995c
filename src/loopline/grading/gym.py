"""The verifiers of reasoning-gym, run in the sandbox: other people's parsers read what a model wrote there.

A row's item names the data set, its settings and the entry, so a stored row is graded without making the data set
again. Not covered: environments of reasoning-gym that answer over several turns.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from loopline.base.errors import UserError
from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.sandbox.runner import Job, Result, SandboxPool

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SECONDS = 60.0
"""Time for one batch; the package alone takes some three seconds to import."""
ALONE_SECONDS = 15.0
"""Time for one answer by itself."""
FULL = 0.99
"""What `score_answer` gives for a right answer, rounding aside."""
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
    results = [one for batch in pool.map([_job(source, batch, SECONDS) for batch in batches]) for one in batch]
    # One answer that hangs or crashes a verifier takes its batch with it: those left over are graded one by one.
    left = [number for number, result in enumerate(results) if result.status in ("timeout", "crashed", "oom")]
    alone = pool.map([_job(source, [samples[number]], ALONE_SECONDS) for number in left])
    for number, (result,) in zip(left, alone, strict=True):
        results[number] = result
    return [_grade(result) for result in results]


def _job(source: str, samples: Sequence[Sample], seconds: float) -> Job:
    items = [sample.task.item for sample in samples]
    calls = [
        [item["dataset"], item.get("settings") or {}, item["entry"], answer_of(sample)]
        for item, sample in zip(items, samples, strict=True)
    ]
    return Job(source, "grade", calls, seconds, trusted=True, memory_mb=MEMORY_MB)


def _grade(result: Result) -> Grade:
    """The full score or none: a partial score for the right answer among others is what a policy would exploit."""
    if result.status == "ok" and isinstance(result.value, float):
        return Grade(float(result.value >= FULL), evidence=f"score_answer gives {result.value:.3g}")
    if result.status == "unavailable" or result.error.startswith(("ModuleNotFoundError", "ImportError")):
        return Grade(None, evidence=result.error, flags=("grader_failed",))
    # The verifier accepted its own answer when the row was made, so it is this text that it cannot take.
    return Grade(
        0.0, evidence=f"the verifier failed on it: {result.error or result.status}", flags=("verifier_failed",)
    )
