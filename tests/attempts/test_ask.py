"""The one place where a policy is asked: prompts, stops, seeds, grades, and going on after a death."""

import json
from dataclasses import replace

import httpx
import pytest

from loopline.attempts.ask import answer_text, ask, render_prompt
from loopline.attempts.scripted import ScriptedEngine
from loopline.base.errors import UserError
from loopline.chat.tokenizer import END, THINK, THINK_END
from loopline.grading.grade import Grade
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Completion, Sampling, TorchEngine
from loopline.inference.openai_engine import OpenAIEngine
from tests.faults import every_fault
from tests.rl.support import ParityGraders, policy, task

TASKS = [task(number) for number in range(7)]
TEXT = "{{ sample.output_text }}"
CONTAINS = "def grade(sample, item):\n    return item['answer'] in sample['output_text']"
SAMPLING = Sampling(max_new_tokens=9, temperature=1.3, n=3)


@pytest.fixture
def engine(tokenizer):
    return TorchEngine(policy(), tokenizer)


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 100])
def test_the_chunk_decides_nothing(engine, tmp_path, chunk):
    with ParityGraders() as graders:
        whole = ask(engine, TASKS, SAMPLING, graders=graders, seed=4)
        parts = ask(engine, TASKS, SAMPLING, graders=graders, seed=4, state=tmp_path, chunk=chunk)
        again = ask(engine, TASKS, SAMPLING, graders=graders, seed=4, state=tmp_path, chunk=chunk)
    assert parts == whole == again
    assert len(files(tmp_path)) == -(-len(TASKS) // chunk)


def test_a_tasks_samples_depend_on_its_name_and_the_seed(engine):
    whole = ask(engine, TASKS, SAMPLING, seed=4)
    backwards = ask(engine, TASKS[::-1], SAMPLING, seed=4)
    assert backwards == whole[::-1]
    assert ask(engine, TASKS[2:4], SAMPLING, seed=4) == whole[2:4]
    assert [group[0].completion for group in ask(engine, TASKS, SAMPLING, seed=5)] != [g[0].completion for g in whole]
    given = ask(engine, [TASKS[0], TASKS[0]], SAMPLING, seeds=[1, 2])
    assert given[0] != given[1], "a task that stands twice is sampled twice when its seeds differ"


def test_attempts_hold_what_was_seen_and_sampled(engine, tokenizer):
    for one, group in zip(TASKS, ask(engine, TASKS, SAMPLING, seed=4), strict=True):
        for number, attempt in enumerate(group):
            assert (attempt.task, attempt.sample, attempt.grade) == (one, number, None)
            assert list(attempt.prompt) == tokenizer.render(one.messages, add_generation_prompt=True)
            ids = attempt.completion.token_ids
            assert attempt.text == tokenizer.decode(ids[:-1] if attempt.completion.finish == "stop" else ids)
            assert attempt.tokens == len(ids) > 0


def test_the_stop_is_no_part_of_the_text(tokenizer):
    ids = tokenizer.encode("one\n\ntwo")
    assert answer_text(tokenizer, Completion([*ids, END], [], "stop", 0)) == "one\n\ntwo"
    assert answer_text(tokenizer, Completion(ids, [], "length", 0)) == "one\n\ntwo"
    assert answer_text(tokenizer, Completion(ids, [], "stop", 0, stop_text="\n\n")) == "one"


@pytest.mark.parametrize("state", [False, True])
def test_grades_are_each_tasks_own_and_those_asked_for_beside(tokenizer, tmp_path, state):
    definitions = {
        "parity": {"type": "python", "source": CONTAINS},
        "says_two": {"type": "string_check", "operation": "like", "input": TEXT, "reference": "2"},
    }
    engine = ScriptedEngine(tokenizer, lambda prompt: "2 or 3")
    done = []
    with GraderSet(definitions) as graders:
        settings = {"graders": graders, "also": ("says_two",), "progress": done.append}
        groups = ask(engine, TASKS, SAMPLING, state=tmp_path if state else None, **settings)
    scores = [[attempt.score for attempt in group] for group in groups]
    assert scores == [[float(one.answer in "2 or 3")] * 3 for one in TASKS]
    assert all(attempt.components["says_two"].score == 1 for group in groups for attempt in group)
    assert sum(done) == len(TASKS)


def test_other_settings_never_meet_what_is_saved(engine, tokenizer, tmp_path):
    class Other(ParityGraders):
        def __init__(self):
            super().__init__()
            self.definitions["parity"] = {"type": "string_check"}

        def grade(self, samples, name=None):
            return [Grade(0.5) for _ in samples]

    def asked(who=engine, tasks=TASKS, sampling=SAMPLING, graders=None, **settings):
        before = len(files(tmp_path))
        with graders or ParityGraders() as used:
            found = ask(who, tasks, sampling, graders=used, state=tmp_path, chunk=100, **{"seed": 4, **settings})
            assert found == ask(who, tasks, sampling, graders=used, **{"seed": 4, **settings})
        return len(files(tmp_path)) - before

    assert asked() == 1
    assert asked() == 0
    assert asked(TorchEngine(policy(9), tokenizer)) == 1
    assert asked(sampling=replace(SAMPLING, n=2)) == 1
    assert asked(sampling=replace(SAMPLING, temperature=1.2)) == 1
    assert asked(tasks=[one.model_copy(update={"answer": "9"}) for one in TASKS]) == 1
    assert asked(seed=5) == 1
    assert asked(thinking=False) == 1
    assert asked(graders=Other()) == 1


def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_attempts(tokenizer, tmp_path):
    """Death at every change of a file; what was finished is not asked for again."""

    def go(path):
        engine = ScriptedEngine(tokenizer, lambda prompt: str(sum(prompt)))
        with ParityGraders() as graders:
            return engine, ask(engine, TASKS, SAMPLING, graders=graders, seed=4, state=path, chunk=2)

    _, expected = go(tmp_path / "whole")
    deaths = 0
    for k in every_fault(lambda k: lambda: go(tmp_path / str(k))):
        deaths += 1
        finished = len(list((tmp_path / str(k)).glob("attempts-*.jsonl")))
        engine, found = go(tmp_path / str(k))
        assert found == expected
        assert len(engine.prompts) == max(0, len(TASKS) - 2 * finished)
        left = {name: text for name, text in files(tmp_path / str(k)).items() if name.startswith("attempts-")}
        assert left == files(tmp_path / "whole")
    assert deaths >= 8


def test_thinking_is_switched_by_the_template(tokenizer):
    prompt = tokenizer.render(TASKS[0].messages, add_generation_prompt=True)
    assert render_prompt(tokenizer, TASKS[0]) == tuple(prompt)
    assert render_prompt(tokenizer, TASKS[0], False) == (*prompt, THINK, THINK_END)
    engine = ScriptedEngine(tokenizer, lambda prompt: "4")
    groups = ask(engine, TASKS[:3], Sampling(), thinking=[True, False, True])
    assert [group[0].prompt[-1] == THINK_END for group in groups] == [False, True, False]
    assert [group[0].thinking for group in groups] == [True, False, True]

    class Deaf:
        def render(self, messages, add_generation_prompt=False, **options):
            return [len(messages)]

    assert render_prompt(Deaf(), TASKS[0], True) == (1,)
    with pytest.raises(UserError, match="the same prompt with enable_thinking and without.*Fix: "):
        render_prompt(Deaf(), TASKS[0], False)


def test_a_server_renders_and_stops_by_itself():
    bodies = []

    def handle(request):
        bodies.append(json.loads(request.content))
        message = {"role": "assistant", "content": "4", "reasoning_content": "3+1"}
        choices = [{"index": n, "message": message, "finish_reason": "stop"} for n in range(bodies[-1]["n"])]
        return httpx.Response(200, json={"choices": choices})

    engine = OpenAIEngine("http://server/v1", "m", ask_logprobs=False, transport=httpx.MockTransport(handle))
    done = []
    with ParityGraders() as graders:
        groups = ask(engine, TASKS, SAMPLING, graders=graders, seed=4, progress=done.append)
    assert [group[2].text for group in groups] == ["<think>3+1</think>4"] * len(TASKS)
    assert groups[0][0].tokens is None and groups[0][0].prompt == () and groups[0][0].score is not None
    assert sum(done) == len(TASKS) == len(bodies) == len({body["seed"] for body in bodies})
    assert all("logprobs" not in body and body["max_tokens"] == 9 for body in bodies)
    with pytest.raises(UserError, match="renders prompts itself"):
        ask(engine, TASKS, SAMPLING, thinking=False)
