"""Evaluation with a scripted engine: what is asked, what is reported, what cannot be graded."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.attempts.ask import seed_of
from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.evaluate import answer_tasks, headline, item_rows, summarize
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
    rows = item_rows(answer_tasks(engine, tasks, graders, EvaluateConfig(), "sampled", 4), "sampled")
    assert [row["task"] for row in rows] == [task.id for task in tasks]
    assert {row["score"] for row in rows} == {1.0}
    prompts, sampling, seeds = engine.seen[0]
    assert (sampling.temperature, sampling.n, sampling.max_new_tokens) == (1.0, 1, 48)
    assert seeds == [seed_of(4, task.id) for task in tasks] and len(set(seeds)) == len(seeds)
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
        rows = item_rows(answer_tasks(Oracle(tokenizer, some), some, graders, EvaluateConfig(), "greedy", 0), "greedy")
    assert [row["score"] for row in rows] == [None] * 5
    summary = summarize("sft", rows, ["greedy"], 0)
    assert {(row["n"], row["value"], row["ungradable"]) for row in summary} == {(0, None, 5)}
    rows[0]["score"], rows[1]["score"] = 1.0, 0.0
    summary = summarize("sft", rows, ["greedy"], 0)
    assert {(row["n"], row["value"], row["ungradable"]) for row in summary} == {(2, 0.5, 3)}


def row(task, score, sample=0, tags=(), **more):
    return {
        "task": task, "task_set": "math", "tags": list(tags), "part": "dev", "mode": "sampled", "sample": sample,
        "score": score, **more,
    }  # fmt: skip


def test_tags_are_reported_by_themselves():
    rows = [row("a", 0.0, tags=("must_refuse",)), row("b", 1.0, tags=("must_answer",)), row("c", 1.0)]
    found = {one["task"]: (one["n"], one["value"]) for one in summarize("align", rows, ["sampled"], 0)}
    assert found == {"math": (3, round(2 / 3, 6)), "tag:must_refuse": (1, 0.0), "tag:must_answer": (1, 1.0)}


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=4, max_size=4), min_size=1, max_size=8))
def test_pass_at_k_and_pass_hat_k_are_those_of_all_subsets(scores):
    rows = [row(str(t), s, n) for t, group in enumerate(scores) for n, s in enumerate(group)]
    found = {one["metric"]: one for one in summarize("x", rows, ["sampled"], 0)}
    for k in (2, 4):
        graded = [[s for s in group if s is not None] for group in scores]
        subsets = [list(combinations(group, k)) for group in graded if len(group) >= k]
        for name, rule in (("pass@", max), ("pass^", min)):
            rates = [sum(map(rule, some)) / len(some) for some in subsets]
            value = found[f"sampled {name}{k}"]["value"]
            assert value == (pytest.approx(sum(rates) / len(rates), abs=1e-6) if rates else None)


def test_samples_of_a_task_widen_the_interval():
    apart = [row(str(t), float(t % 2)) for t in range(32)]
    alike = [row(str(t), float(t % 2), n) for t in range(8) for n in range(4)]
    (one, *_), (other, *_) = (summarize("x", rows, ["sampled"], 0) for rows in (apart, alike))
    assert one["value"] == other["value"] == 0.5 and (one["n"], other["n"]) == (32, 8)
    assert other["high"] - other["low"] > 1.8 * (one["high"] - one["low"])
    joined = [{**item, "cluster": int(item["task"]) // 4} for item in apart]
    assert summarize("x", joined, ["sampled"], 0)[0]["low"] != one["low"]


def test_a_headline_says_the_held_out_tags_first():
    rows = [row(str(n), 1.0, tags=("reasoning",)) for n in range(4)]
    assert headline(summarize("x", rows, ["sampled"], 0)) == "development reasoning 100.0% [51.0, 100.0]"
    held = [{**item, "part": "heldout", "tags": []} for item in rows]
    assert headline(summarize("x", [*rows, *held], ["sampled"], 0)) == "math 100.0% [51.0, 100.0]"
    assert headline([{"task": "books", "value": 1.5, "metric": "bits_per_byte"}]) == "books 1.500 bits per byte"
