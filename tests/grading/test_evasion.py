"""Answers that open and close thinking again: none is rewarded, whatever they say last; the honest form is."""

import random

import pytest

from loopline.chat.thinking import THINK, THINK_END, answer_text, read_thinking
from loopline.chat.tokenizer import ASSISTANT
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.inference.thinking import Thought, thinking_marks
from loopline.tasks.task import task_from_row
from tests.support_model import tiny_tokenizer


def task(answer="7"):
    question = [{"role": "user", "content": "3+4=?"}]
    return task_from_row({"id": "t", "task_set": "x", "messages": question, "answer": answer, "grader": "final_answer"})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def graders():
    with GraderSet.from_defs({"final_answer": {"type": "final_answer"}}) as found:
        yield found


def evasions(count):
    """Texts with reasoning outside the one thinking part, all ending in the right answer."""
    rng = random.Random(5)
    pieces = [THINK, THINK_END, "3+4=7", "8", " ", "so", "\n"]
    found = []
    while len(found) < count:
        text = "".join(rng.choices(pieces, k=rng.randint(1, 8)))
        text += rng.choice([f"{THINK_END}7", f"{THINK}{THINK_END}7", f"{THINK}3+4{THINK_END}7"])
        start = text.lstrip()
        honest = start.startswith(THINK) and start.count(THINK) == start.count(THINK_END) == 1
        if not honest:
            found.append(text)
    return found


def test_no_evasion_is_rewarded_and_the_honest_answer_is(graders):
    texts = ["<think></think>8</think>7", "8</think>7", "8<think></think>7", *evasions(1000)]
    grades = graders.grade([Sample(task(), text) for text in texts])
    assert [grade.score for grade in grades] == [0.0] * len(texts)
    assert all(grade.flags in (("malformed_think",), ("unclosed_think",)) for grade in grades)
    honest = graders.grade([Sample(task(), text) for text in ("<think>x</think>7", "<think></think>7", "7")])
    assert [grade.score for grade in honest] == [1.0] * 3


def run(tokenizer, prompt, wanted, budget):
    """What a row writes whose policy wants to write `wanted`, and how much of its thinking was sampled."""
    thought = Thought(prompt, thinking_marks(tokenizer, None), budget)
    written, thinking = [], 0
    for token in wanted:
        while (forced := thought.force()) is not None:
            written.append(forced)
            thought.add(forced)
        thinking += thought.open and token not in thinking_ids(tokenizer)
        written.append(token)
        thought.add(token)
    return written, thinking


def thinking_ids(tokenizer):
    marks = thinking_marks(tokenizer, None)
    return marks.begin, marks.end


def test_under_a_budget_nothing_is_thought_for_free_and_nothing_evasive_is_rewarded(tokenizer, graders):
    asked = tokenizer.render(task().messages, add_generation_prompt=True)
    samples = []
    for number, text in enumerate(evasions(1000)):
        prompt = [asked, [*asked, *thinking_ids(tokenizer)], [*asked, thinking_ids(tokenizer)[0]]][number % 3]
        budget = number % 2 * 2
        written, thinking = run(tokenizer, prompt, tokenizer.encode(text), budget)
        assert thinking <= budget
        answer = answer_text(tokenizer, prompt, written)
        if prompt[-1] == thinking_ids(tokenizer)[0] and read_thinking(answer).problem is None:
            continue  # the prompt opened the one thought, and the answer closed it
        samples.append(Sample(task(), answer))
    assert len(samples) > 800
    assert {grade.score for grade in graders.grade(samples)} == {0.0}


def test_marks_in_a_prompt_count_and_spelled_marks_divide_nothing(tokenizer):
    begin, end = thinking_ids(tokenizer)
    seven, eight = tokenizer.encode("7"), tokenizer.encode("8")
    assert answer_text(tokenizer, [ASSISTANT, begin], [*eight, end, *seven]) == "<think>8</think>7"
    assert answer_text(tokenizer, [ASSISTANT, begin, end], seven) == "7"
    again = answer_text(tokenizer, [ASSISTANT, begin, end], [begin, *eight, end, *seven])
    assert read_thinking(again).problem == "a second <think>"
    spelled = tokenizer.encode_plain("<think>8</think>7")
    assert begin not in spelled
    assert answer_text(tokenizer, [ASSISTANT], [*spelled, tokenizer.end_id]) == "< think>8< /think>7"
