"""Data sets of reasoning-gym: parts that share no question, rows that grade themselves. Skipped without the package."""

import json

import pytest

from loopline.base.errors import UserError
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.config import TaskSetConfig
from loopline.tasks.parts import read_set
from loopline.tasks.reasoning_gym import make_rows
from loopline.tasks.task import task_from_row
from loopline.text.words import normal_form

pytest.importorskip("reasoning_gym")
SIZES = {"train": 60, "dev": 10, "heldout": 10}


def test_parts_share_no_question_although_ranges_of_seeds_would():
    for seed in (0, 1, 77):
        parts = make_rows("base_conversion", {"max_value": 60, "max_base": 8}, SIZES, seed)
        forms = {part: {normal_form(question) for question, _, _ in rows} for part, rows in parts.items()}
        assert {part: len(found) for part, found in forms.items()} == SIZES
        assert not forms["train"] & (forms["dev"] | forms["heldout"]) and not forms["dev"] & forms["heldout"]


def test_more_training_rows_do_not_move_the_others():
    few = make_rows("base_conversion", {}, SIZES, 3)
    more = make_rows("base_conversion", {}, {**SIZES, "train": 90}, 3)
    assert few["heldout"] == more["heldout"] and few["dev"] == more["dev"] and few["train"] == more["train"][:60]


@pytest.mark.parametrize("dataset", ["base_conversion", "chain_sum", "basic_arithmetic", "letter_counting"])
def test_a_stored_row_is_graded_by_the_packages_own_verifier(dataset):
    config = TaskSetConfig(
        package=f"reasoning_gym:{dataset}", sizes={"train": 4, "dev": 2, "heldout": 2}, tags=("reasoning",)
    )
    found = read_set("own", config, {}, 0)
    assert found.grader == "reasoning_gym" and len(found.rows["heldout"]) == 2
    tasks = [task_from_row(json.loads(json.dumps(row))) for rows in found.rows.values() for row in rows]
    with GraderSet.from_defs({"reasoning_gym": {"type": "reasoning_gym"}}) as graders:
        right = graders.grade([Sample(task, f"<think>so</think>{task.answer}") for task in tasks])
        tagged = graders.grade([Sample(task, f"It is\n<answer>{task.answer}</answer>") for task in tasks])
        wrong = graders.grade([Sample(task, "nothing of the kind") for task in tasks])
    assert [grade.score for grade in right + tagged] == [1.0] * 16, right
    assert all(grade.score is not None and grade.score < 0.5 for grade in wrong)


def test_mistakes():
    with pytest.raises(UserError, match="cannot make the data set 'poetry'"):
        make_rows("poetry", {}, SIZES, 0)
    with pytest.raises(UserError, match="distinct questions"):
        make_rows("base_conversion", {"max_base": 3, "min_base": 2, "max_value": 3}, SIZES, 0)
