"""A small world to look things up for tests: documents, tasks of every kind, an exact grader, a byte tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopline.chat.forms.form import Call
from loopline.chat.parser import OWN
from loopline.chat.tokenizer import Tokenizer
from loopline.environments.search import SearchEnvironment
from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.tasks.task import Task, task_from_row
from tests.support_model import tiny_tokenizer

THINGS = {"blue lamp": 7, "red cup": 12, "blue cup": 3, "red lamp": 9, "gold ring": 18}
DOCUMENTS = [
    {"id": f"doc-{name}", "part": "train", "title": name, "text": f"The {name} costs {coins} coins."}
    for name, coins in THINGS.items()
]


class ExactGraders:
    """The answer after the thinking must be the reference; counts how often it was asked."""

    def grade(self, samples: Sequence[Sample]) -> list[Grade]:
        return [Grade(float(split_thinking(sample.text)[1] == sample.task.answer)) for sample in samples]


def single(name: str) -> Task:
    """One search answers it."""
    return _task(f"What does the {name} cost?", str(THINGS[name]), [("search", {"query": name}, text_of(name))])


def together(first: str, second: str) -> Task:
    """Two searches and a sum."""
    a, b = THINGS[first], THINGS[second]
    calls = [("search", {"query": name}, text_of(name)) for name in (first, second)]
    calls.append(("calculator", {"expression": f"{a}+{b}"}, str(a + b)))
    return _task(f"What do the {first} and the {second} cost together?", str(a + b), calls)


def text_of(name: str) -> str:
    return f"The {name} costs {THINGS[name]} coins."


def tasks() -> list[Task]:
    names = sorted(THINGS)
    return [*map(single, names), *(together(a, b) for a in names for b in names if a < b)]


def environment(graders: Any = None) -> SearchEnvironment:
    return SearchEnvironment(DOCUMENTS, graders or ExactGraders())


def tokenizer(path: Path) -> Tokenizer:
    return tiny_tokenizer(path)


def _task(question: str, answer: str, calls: list) -> Task:
    messages: list[dict] = []
    for name, arguments, result in calls:
        messages.append({"role": "assistant", "content": OWN.write([Call(name, arguments)])})
        messages.append({"role": "tool", "content": result})
    messages.append({"role": "assistant", "content": answer})
    return task_from_row(
        {
            "id": question,
            "task_set": "shop",
            "tags": ["tools"],
            "messages": [{"role": "user", "content": question}],
            "answer": answer,
            "grader": "final_answer",
            "responses": [{"style": "tool", "messages": messages}],
        }
    )
