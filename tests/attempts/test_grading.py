"""Grading on the way: while others are sampled, in whatever order they finish, with the same grades."""

import threading
import time

import pytest

from loopline.attempts.grading import Grading
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.inference.engine import TorchEngine
from loopline.rl.collect import Memory
from tests.rl.support import CONFIG, SHARES, make_collector, policy, task
from tests.support_graders import DEFINITIONS as READY

SOURCE = "def grade(sample, item):\n    return (len(sample['output_text']) % 5) / 4\n"
DEFINITIONS = {
    "parity": {"type": "python", "source": SOURCE},
    "naive_contains": READY["naive_contains"],
}


class Slow(GraderSet):
    """Takes its time, and remembers when it was asked, by which thread."""

    def __init__(self, seconds=0.0):
        super().__init__(DEFINITIONS)
        self.seconds, self.asked = seconds, []

    def grade(self, samples, name=None):
        self.asked.append((time.monotonic(), threading.get_ident(), len(samples)))
        time.sleep(self.seconds)
        return super().grade(samples, name)


def test_grades_come_back_in_their_places_whatever_the_order():
    with Slow() as graders, Grading(graders, ("naive_contains",)) as grading:
        samples = [Sample(task(1), text) for text in ("1", "22", "333", "4444", "2")]
        for place in (3, 0, 4):
            grading.add(place, samples[place])
        grades, components = grading.done(samples)
    assert [grade.score for grade in grades] == [0.25, 0.5, 0.75, 1.0, 0.25]
    assert [grade.score for grade in components["naive_contains"]] == [0, 1, 0, 0, 1]


def test_what_a_grader_raises_is_raised_where_grades_are_asked_for():
    class Broken(Slow):
        def grade(self, samples, name=None):
            raise RuntimeError("the judge has left")

    with Broken() as graders, Grading(graders) as grading:
        samples = [Sample(task(1), "2")] * 3
        for place in range(3):
            grading.add(place, samples[place])
        with pytest.raises(RuntimeError, match="the judge has left"):
            grading.done(samples)


def test_graders_that_run_code_are_known():
    with GraderSet({**READY, **DEFINITIONS}) as graders:
        assert graders.uses_sandbox({"parity"}) and graders.uses_sandbox({"final_answer", "code_tests"})
        assert not graders.uses_sandbox({"final_answer", "steps", "naive_contains"})
    part = {"type": "multi", "graders": {"a": DEFINITIONS["parity"]}, "calculate_output": "a"}
    with GraderSet({"whole": part}) as graders:
        assert graders.uses_sandbox({"whole"})


def test_answers_are_graded_while_others_are_sampled(tokenizer):
    config = CONFIG.model_copy(update={"prompts_per_step": 8, "max_new_tokens": 40, "temperature": 2.0})
    with Slow(0.01) as graders:
        collector = make_collector(tokenizer, graders, config=config)
        collector.engine.batch_size = 2
        rollout, _ = collector.collect(0, 0, Memory())
        ended = time.monotonic()
        assert sum(count for _, _, count in graders.asked) == 32
        assert all(thread != threading.get_ident() for _, thread, _ in graders.asked)
        assert len(graders.asked) > 2 and graders.asked[0][0] < ended - 0.02
    assert all(grade.score is not None for group in rollout.groups for grade in group.grades)


def test_on_the_way_or_afterwards_the_rollout_is_the_same(tokenizer, monkeypatch):
    with Slow() as graders:
        memory = Memory()
        one, _ = make_collector(tokenizer, graders, policy()).collect(0, 0, memory)
        monkeypatch.setattr(GraderSet, "uses_sandbox", lambda self, names: False)
        other, _ = make_collector(tokenizer, graders, policy()).collect(0, 0, memory)
    assert [group.completions for group in one.groups] == [group.completions for group in other.groups]
    assert [group.rewards for group in one.groups] == [group.rewards for group in other.groups]
    assert [group.texts for group in one.groups] == [group.texts for group in other.groups]


def test_an_error_while_sampling_ends_the_graders_thread(tokenizer, monkeypatch):
    def broken(self, requests):
        raise RuntimeError("no memory")
        yield

    monkeypatch.setattr(TorchEngine, "generate_stream", broken)
    before = threading.active_count()
    with Slow() as graders, pytest.raises(RuntimeError, match="no memory"):
        make_collector(tokenizer, graders, shares=SHARES).collect(0, 0, Memory())
    assert threading.active_count() == before
