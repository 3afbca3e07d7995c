"""Stated answers: a number, an expression, a letter; lists of candidates state nothing."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.grading.answers import choice, gsm8k, math, normal_math, stated_choice, stated_number
from loopline.grading.grade import Sample
from loopline.tasks.config import TaskSetConfig
from loopline.tasks.files import read_table
from loopline.tasks.parts import rows_of
from loopline.tasks.task import Task, task_from_row
from tests.support import SHARED_DATA


def sample(text, answer, prompt="How many?", **item):
    messages = ({"role": "user", "content": prompt},)
    return Sample(Task(id="t", task_set="s", grader="g", messages=messages, answer=answer, item=item), text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sold 48/2 = 24 clips in May.\n#### 72", 72),
        ("#### 1,234.50", 1234.5),
        ("#### -3", -3),
        ("#### $18 per day", 18),
        ("So 48 + 24 = 72", 72),
        ("First 5.\nShe sold 72 clips altogether.", 72),
        ("72", 72),
        ("The answer is $1,000.", 1000),
        ("#### 71 72", None),
        ("#### 71\n#### 72", None),
        ("70 71 72 73", None),
        ("72 72 72", None),
        ("no number", None),
        ("", None),
        ("####", None),
    ],
)
def test_the_number_that_is_stated(text, number):
    found = stated_number(text)
    assert (None if found is None else float(found.replace(",", ""))) == number
    assert gsm8k(sample(text or "-", "72")).score == float(number == 72)


@given(number=st.integers(-(10**9), 10**9), before=st.sampled_from(["", "So it is ", "1 + 2 = 3\n", "Natalia has "]))
def test_any_number_is_read_back(number, before):
    assert gsm8k(sample(f"{before}#### {number:,}", str(number))).score == 1
    assert gsm8k(sample(f"Then the answer must be {number}", f"worked\n#### {number}")).score == 1
    assert gsm8k(sample(f"{number + 1}", str(number))).score == 0


def test_a_copy_of_the_question_and_a_broken_reference():
    assert gsm8k(sample("What is 3 plus 4?", "4", prompt="What is 3 plus 4?")).score == 0
    assert gsm8k(sample("4", "none")).score is None


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
def test_the_worked_solutions_of_gsm8k_are_right():
    form, rows = rows_of("g", read_table(SHARED_DATA / "gsm8k" / "test.jsonl"), TaskSetConfig(file="test.jsonl"))
    tasks = [task_from_row({**row, "task_set": "g", "grader": form.grader}) for row in rows]
    assert all(gsm8k(Sample(task, task.responses[0]["messages"][0]["content"])).score == 1 for task in tasks)
    moved = zip(tasks, tasks[1:], strict=False)
    wrong = [gsm8k(Sample(task, f"#### {other.answer}")).score for task, other in moved if task.answer != other.answer]
    assert sum(wrong) == 0


EQUAL = [
    ("\\frac{1}{2}", "0.5"), ("\\frac12", "1/2"), ("\\dfrac{3}{6}", "\\tfrac{1}{2}"), ("1,000", "1000"),
    ("x=5", "5"), ("$\\$7.50$", "7.5"), ("50\\%", "50"), ("90^\\circ", "90"), ("(1, 2)", "(1,2)"),
    ("\\left(\\frac{1}{2}, 3\\right)", "(0.5,3)"), ("\\{2, 1\\}", "\\{1,2\\}"), ("-\\frac{2}{4}", "-0.5"),
    ("3\\sqrt{2}", "3 \\sqrt 2"), ("12\\text{ cm}", "12"), ("\\text{even}", "even"), ("2\\frac{1}{2}", "\\frac{5}{2}"),
    ("\\frac{\\sqrt{3}}{2}", "\\frac{\\sqrt 3}{2}"), ("x^2+1", "x^2 + 1"), ("+3", "3"), ("1, 3", "3,1"),
]  # fmt: skip
DIFFERENT = [
    ("1/2", "1/3"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("12", "1,2"),
    ("-1", "1"),
    ("x+1", "x-1"),
    ("even", "odd"),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_expressions(left, right):
    assert normal_math(left) == normal_math(right)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different_expressions(left, right):
    assert normal_math(left) != normal_math(right)


@given(top=st.integers(-500, 500), bottom=st.integers(1, 500), times=st.integers(1, 9))
def test_a_fraction_is_its_value_however_it_is_written(top, bottom, times):
    sign, size = ("-" if top < 0 else ""), abs(top)
    wanted = str(Fraction(top, bottom))
    assert normal_math(f"{sign}\\frac{{{size * times}}}{{{bottom * times}}}") == wanted
    assert normal_math(f"{top}/{bottom}") == wanted


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("So \\boxed{\\frac{2}{3}}.", 1),
        ("First \\boxed{1}, then \\boxed{2/3}", 1),
        ("The answer is 2/3.", 1),
        ("$\\frac23$", 1),
        ("\\boxed{1/3}", 0),
        ("It is 2/3\nor 1/3\nor 5", 0),
        ("2/3 1/3 1/2", 0),
        ("I do not know", 0),
    ],
)
def test_math(text, score):
    assert math(sample(text, "\\frac{2}{3}")).score == score


CHOICES = {"A": "ice", "B": "a fire", "C": "snow"}


@pytest.mark.parametrize(
    "text",
    ["B", "b", "(B)", "B.", "**B**", "B. a fire", "B) a fire", "The answer is B.", "Answer: (B)", "\\boxed{B}",
     "\\boxed{\\text{B}}", "A fire.", "I think the correct choice is **B** because it burns."],
)  # fmt: skip
def test_a_letter_however_it_is_stated(text):
    assert choice(sample(text, "B", choices=CHOICES)).score == 1
    assert choice(sample(text, "C", choices=CHOICES)).score == 0


@pytest.mark.parametrize(
    "text",
    ["A B C", "A. ice B. a fire C. snow", "The answer is A. The answer is B.", "It burns", "D", "A, B", "ice snow"],
)
def test_several_letters_or_none_state_nothing(text):
    assert stated_choice(text, CHOICES) is None
    assert choice(sample(text, "B", choices=CHOICES)).score == 0


def test_a_reference_that_is_no_label_cannot_be_graded():
    assert choice(sample("A", "Z", choices=CHOICES)).score is None
