"""Contract tests: small rows of our own in the forms of known task files become prompts, answers and items."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_jsonl
from loopline.tasks.config import FORMATS, READY, TaskSetConfig
from loopline.tasks.files import read_table
from loopline.tasks.formats import FORMS, boxed
from loopline.tasks.parts import rows_of
from loopline.tasks.task import task_from_row
from tests.support import SHARED_DATA

ROWS = {
    "gsm8k": {
        "question": "Tom has 3 boxes of 4 pens and loses 2 pens. How many pens are left?",
        "answer": "Tom has 3*4=<<3*4=12>>12 pens.\nAfter losing 2 there are 12-2=<<12-2=10>>10.\n#### 10",
    },
    "math": {
        "problem": "Find $x$ with $3x=2$.", "level": "Level 1", "type": "Algebra",
        "solution": "Divide by 3: $x = \\boxed{\\frac{2}{3}}$.",
    },
    "humaneval": {
        "task_id": "Own/0", "prompt": 'def double(x):\n    """Twice x."""\n', "entry_point": "double",
        "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
    "mbpp": {
        "task_id": 7, "text": "Write a function to triple a number.", "code": "def triple(x):\n  return 3 * x",
        "test_list": ["assert triple(1) == 3", "assert triple(-2) == -6"], "test_setup_code": "",
        "challenge_test_list": [],
    },
    "arc": {
        "id": "Own_1", "question": "Which of these is hot?", "answerKey": "2",
        "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
    },
    "mmlu": {"question": "What is 2 + 2?", "subject": "arithmetic", "choices": ["3", "4", "5", "6"], "answer": 1},
    "ifeval": {
        "key": 12, "prompt": "Name two birds. Do not use commas.", "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None}],
    },
}  # fmt: skip


def read(tmp_path, row, name="rows.jsonl", **settings):
    write_jsonl(tmp_path / name, [row])
    form, rows = rows_of("own", read_table(tmp_path / name), TaskSetConfig(file=name, **settings))
    return form.name if form else None, task_from_row({**rows[0], "task_set": "own", "grader": "g"})


@pytest.mark.parametrize("name", ROWS)
def test_a_form_is_recognised_and_may_be_named(tmp_path, name):
    assert read(tmp_path, ROWS[name]) == read(tmp_path, ROWS[name], format=name)
    assert read(tmp_path, ROWS[name])[0] == name
    assert FORMS[name].grader in READY


def test_every_form_that_a_recipe_may_name_is_there():
    assert {*FORMS, "chat", "columns"} == set(FORMATS)


def test_gsm8k(tmp_path):
    task = read(tmp_path, ROWS["gsm8k"])[1]
    assert task.answer == "10" and task.prompt.startswith("Tom has 3 boxes")
    assert task.responses[0]["messages"][0]["content"].startswith("Tom has 3*4=12 pens.")


def test_math(tmp_path):
    task = read(tmp_path, ROWS["math"])[1]
    assert task.answer == "\\frac{2}{3}" and task.item["level"] == "Level 1"
    named = {**ROWS["math"], "answer": "2/3"}
    assert read(tmp_path, named)[1].answer == "2/3"


def test_humaneval(tmp_path):
    task = read(tmp_path, ROWS["humaneval"])[1]
    assert task.id == "own-Own/0" and task.item["entry"] == "double"
    assert task.item["tests"] == ["def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"]
    assert task.item["setup"] == ROWS["humaneval"]["prompt"] and ROWS["humaneval"]["prompt"] in task.prompt


def test_mbpp(tmp_path):
    task = read(tmp_path, ROWS["mbpp"])[1]
    assert task.item["tests"] == ROWS["mbpp"]["test_list"] and task.item["entry"] == "triple"
    assert "assert triple(1) == 3" in task.prompt, "the tests name the function"
    clean = {
        **{k: v for k, v in ROWS["mbpp"].items() if k != "text"},
        "prompt": "Triple it.",
        "test_imports": ["import math"],
    }
    assert read(tmp_path, clean)[1].item["setup"] == "import math"


def test_multiple_choice(tmp_path):
    task = read(tmp_path, ROWS["arc"])[1]
    assert task.answer == "B" and task.item["choices"] == {"A": "ice", "B": "fire", "C": "snow"}
    assert "B. fire" in task.prompt
    listed = [{"text": text, "label": label} for text, label in zip(*ROWS["arc"]["choices"].values(), strict=True)]
    stem = {"id": "Own_1", "question": {"stem": "Which of these is hot?", "choices": listed}, "answerKey": "2"}
    assert read(tmp_path, stem) == read(tmp_path, ROWS["arc"])
    task = read(tmp_path, ROWS["mmlu"])[1]
    assert task.answer == "B" and task.item["subject"] == "arithmetic"
    columns = {"question": "What is 2 + 2?", "A": "3", "B": "4", "C": "5", "D": "6", "answer": "B"}
    assert read(tmp_path, columns)[1].prompt == task.prompt


def test_instructions(tmp_path):
    task = read(tmp_path, ROWS["ifeval"])[1]
    assert task.item["instructions"] == [{"instruction": "punctuation:no_comma"}] and task.answer == ""


def test_chat_rows_keep_every_field_for_the_grader(tmp_path):
    row = {"messages": [{"role": "user", "content": "2+2?"}], "reference_answer": {"value": 4}}
    form, task = read(tmp_path, row)
    assert form is None and task.prompt == "2+2?" and task.item["reference_answer"] == {"value": 4}
    ends = {"messages": [*row["messages"], {"role": "assistant", "content": "4"}]}
    assert read(tmp_path, ends)[1].answer == "4"


def test_columns_template_and_system(tmp_path):
    row = {"ask": "2+2?", "gold": "4"}
    _, task = read(tmp_path, row, prompt="ask", answer="gold", template="Q: {prompt}", system="Be brief.")
    assert [turn["content"] for turn in task.messages] == ["Be brief.", "Q: 2+2?"] and task.answer == "4"
    # A file of a known form may still be read by columns.
    assert read(tmp_path, ROWS["gsm8k"], prompt="question", answer="answer")[1].answer == ROWS["gsm8k"]["answer"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gsm8k", {"answer": "ten"}, "row 1: the answer has no `#### number`"),
        ("math", {"solution": "see above"}, "no .boxed answer"),
        ("mbpp", {"test_list": []}, "'test_list' is no list of assertions"),
        ("arc", {"answerKey": "9"}, "'9' is to be right"),
        ("mmlu", {"answer": 4}, "'4' is to be right"),
        ("ifeval", {"kwargs": []}, "instruction_id_list and kwargs do not match"),
        ("humaneval", {"prompt": ""}, "row 1: 'prompt' holds ''"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, change, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, {**ROWS[name], **change}, format=name)


def test_a_form_whose_columns_are_missing_says_what_it_needs(tmp_path):
    with pytest.raises(UserError, match="rows of the form math have problem, solution"):
        read(tmp_path, ROWS["gsm8k"], format="math")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{ 2 }", "2"),
        ("\\fbox{x}", "x"),
        ("\\boxed 7 is it", "7"),
        ("\\boxed{never closed", None),
        ("none", None),
    ],
)
def test_boxed(text, inside):
    assert boxed(text) == inside


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
def test_whole_files_that_people_have():
    table = read_table(SHARED_DATA / "gsm8k" / "test.jsonl")
    form, rows = rows_of("gsm8k", table, TaskSetConfig(file="test.jsonl"))
    assert form.name == "gsm8k" and len(rows) == 1319
    assert all(row["answer"].lstrip("-")[0].isdigit() for row in rows)
    table = read_table(SHARED_DATA / "human-eval" / "HumanEval.jsonl.gz")
    form, rows = rows_of("humaneval", table, TaskSetConfig(file="HumanEval.jsonl.gz"))
    assert form.name == "humaneval" and len({row["id"] for row in rows}) == 164
