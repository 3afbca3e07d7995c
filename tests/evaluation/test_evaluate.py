"""Evaluation with a scripted engine: what is asked, what is reported, what cannot be graded."""

import pytest

from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.evaluate import answer_tasks, summarize, task_seed
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Completion
from tests.support_model import tiny_tokenizer


class Oracle:
    """Answers every prompt with the reference answer of the task it was built from, and remembers what it was asked."""

    def __init__(self, tokenizer, tasks):
        self.tokenizer, self.answers, self.seen = tokenizer, [task.answer for task in tasks], []

    def generate(self, prompts, sampling, seeds=None, finished=None):
        self.seen.append(([self.tokenizer.decode(prompt) for prompt in prompts], sampling, list(seeds)))
        groups = []
        for answer in self.answers[: len(prompts)]:
            ids = [*self.tokenizer.encode(answer), 1]
            groups.append([Completion(ids, [0.0] * len(ids), "stop", 0)])
        self.answers = self.answers[len(prompts) :]
        return groups


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_right_answers_score_one_in_every_family(tasks, graders, tokenizer):
    engine = Oracle(tokenizer, tasks)
    rows = answer_tasks(engine, tasks, graders, EvaluateConfig(), "sampled", 4)
    assert [row["task"] for row in rows] == [task.id for task in tasks]
    assert {row["score"] for row in rows} == {1.0}
    prompts, sampling, seeds = engine.seen[0]
    assert (sampling.temperature, sampling.n, sampling.max_new_tokens) == (1.0, 1, 48)
    assert seeds == [task_seed(task.id, 4) for task in tasks[: len(seeds)]] and len(set(seeds)) == len(seeds)
    by_set = {task.task_set: prompt for task, prompt in zip(tasks, prompts, strict=False)}
    assert by_set["lookup"].startswith("<|system|>Notes: The ") and by_set["lookup"].endswith("<|assistant|>")
    assert by_set["arithmetic"].startswith("<|user|>")


def test_greedy_takes_the_likeliest(tasks, graders, tokenizer):
    engine = Oracle(tokenizer, tasks[:3])
    answer_tasks(engine, tasks[:3], graders, EvaluateConfig(), "greedy", 4)
    assert engine.seen[0][1].temperature == 0


def test_what_cannot_be_graded_is_counted_and_not_a_zero(tasks, tokenizer):
    broken = {"final_answer": {"type": "python", "source": "def grade(sample, item): return None"}}
    some = [task for task in tasks if task.task_set == "arithmetic"][:5]
    with GraderSet.from_defs(broken) as graders:
        rows = answer_tasks(Oracle(tokenizer, some), some, graders, EvaluateConfig(), "greedy", 0)
    assert [row["score"] for row in rows] == [None] * 5
    (summary,) = summarize("sft", rows, ["greedy"], 0)
    assert (summary["n"], summary["value"], summary["ungradable"]) == (0, None, 5)
    rows[0]["score"], rows[1]["score"] = 1.0, 0.0
    (summary,) = summarize("sft", rows, ["greedy"], 0)
    assert (summary["n"], summary["value"], summary["ungradable"]) == (2, 0.5, 3)


def test_task_seeds_are_stable():
    assert task_seed("arithmetic-1", 0) == task_seed("arithmetic-1", 0)
    assert len({task_seed(f"t{n}", seed) for n in range(50) for seed in range(3)}) == 150
    assert 0 <= task_seed("x", 2**40) < 2**63


def test_refusals_are_reported_apart_from_help(tasks, graders, tokenizer):
    some = [task for task in tasks if task.task_set == "safety"]
    unsafe = sum(task.item["unsafe"] for task in some)
    assert 0 < unsafe < len(some)
    rows = answer_tasks(Oracle(tokenizer, some), some, graders, EvaluateConfig(), "greedy", 0)
    for row in rows:
        row["score"] = 0.0 if row["unsafe"] else 1.0
    found = {row["task"]: (row["n"], row["value"]) for row in summarize("align", rows, ["greedy"], 0)}
    assert found["refusal"] == (unsafe, 0.0)
    assert found["safety"] == (len(some), round(1 - unsafe / len(some), 6))
