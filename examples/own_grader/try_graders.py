"""Grade a few answers with graders of your own, then audit the graders: what would a policy get away with?

    .venv/bin/python examples/own_grader/try_graders.py examples/own_grader/graders.json

Takes seconds, trains nothing. `mentions_answer` fails on purpose: it pays for a list of guesses. A recipe uses the same
file with `--set "graders.definitions=$(cat examples/own_grader/graders.json)"`. Not covered: graders that are models.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from loopline.grading.audit import audit, audit_digest
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.generators.config import GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import write_tasks
from loopline.tasks.task import load_tasks

COUNTS = TrainCounts(arithmetic=60, word_problem=60, ordering=60, code=60, format=60, safety=60, lookup=60)


def main(definitions: Path) -> None:
    """Grade and audit on freshly generated tasks."""
    with tempfile.TemporaryDirectory() as scratch, GraderSet.from_json(definitions) as graders:
        write_tasks(GeneratorConfig(train=COUNTS, heldout=20), seed=0, out=Path(scratch))
        tasks = load_tasks(Path(scratch) / "train.jsonl")
        task = next(task for task in tasks if task.task_set == "word_problem")
        print(f"{task.prompt}\n  reference: {task.answer}")
        for text in (task.answer, f"{task.answer} coins.", f"1 2 3 {task.answer}", "<think>I give up</think>"):
            scores = [
                f"{name} {graders.grade([Sample(task, text)], name)[0].score}"
                for name in ("final_answer", "short_and_right", "mentions_answer")
            ]
            print(f"  {text!r}: {', '.join(scores)}")
        print()
        print(audit_digest(audit(graders, tasks, seed=0, limit=12)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("graders.json")))
