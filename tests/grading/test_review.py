"""Graders are read and reviewed on the reference answers of their tasks; a bad one is refused in words."""

import json

import pytest

from loopline.base.errors import UserError
from loopline.grading.graders import GraderSet, check_definition
from loopline.grading.review import check_references, review
from loopline.tasks.stage import read_grader
from loopline.tasks.task import Task

GRADER = "grader"


def task(number, answer="", **item):
    return Task(
        id=f"t{number}", task_set="prompts", grader=GRADER, answer=answer,
        messages=({"role": "user", "content": f"How much is {number} and {number + 7}?"},), item=item,
    )  # fmt: skip


TASKS = [task(n, f"It is a sum: {n} + {n + 7} = {2 * n + 7}\n#### {2 * n + 7}") for n in range(12)]


def test_the_ready_grader_passes_its_audit():
    with GraderSet.from_defs({GRADER: {"type": "gsm8k"}}) as graders:
        assert check_references(graders, GRADER, TASKS, 12, False) is True
        report = review(graders, GRADER, TASKS, 0, 12)
    assert report["passed"], report


def test_answers_that_happen_to_be_equal_are_not_the_graders_fault():
    alike = [task(n, f"{n} again\n#### {n // 2 + 100}") for n in range(12)]
    with GraderSet.from_defs({GRADER: {"type": "gsm8k"}}) as graders:
        assert review(graders, GRADER, alike, 0, 12)["passed"]
        constant = {"type": "python", "source": "def grade(sample, item):\n    return 1.0"}
    with GraderSet.from_defs({GRADER: constant}) as graders:
        assert not review(graders, GRADER, alike, 0, 12)["passed"]


def test_without_references_the_audit_asks_what_it_can():
    bare = [task(n) for n in range(6)]
    pays = {"type": "python", "source": "def grade(sample, item):\n    return float('zebra' in sample['output_text'])"}
    junk = {"type": "python", "source": "def grade(sample, item):\n    return 1.0"}
    with GraderSet.from_defs({GRADER: pays}) as graders:
        assert check_references(graders, GRADER, bare, 12, False) is None
        entry = review(graders, GRADER, bare, 0, 6)
        assert entry["passed"] and {row["probe"] for row in entry["probes"]} == {
            "empty",
            "format_only",
            "copied_prompt",
        }
    with GraderSet.from_defs({GRADER: junk}) as graders:
        assert not review(graders, GRADER, bare, 0, 6)["passed"]


def python(body):
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}"}


def test_a_grader_that_always_fails_or_never_pays_is_refused_on_the_references(capsys):
    with GraderSet.from_defs({GRADER: python("return 1 / 0")}) as graders:
        with pytest.raises(UserError, match=r"failed on every one of 12 reference answers.*ZeroDivisionError.*Fix: "):
            check_references(graders, GRADER, TASKS, 12, False)
        assert check_references(graders, GRADER, TASKS, 12, True) is False
        assert "Going on, as --force-grader says" in capsys.readouterr().err
    with (
        GraderSet.from_defs({GRADER: python("return item['nothing']")}) as graders,
        pytest.raises(UserError, match="KeyError"),
    ):
        check_references(graders, GRADER, TASKS, 12, False)
    with (
        GraderSet.from_defs({GRADER: python("return 0")}) as graders,
        pytest.raises(UserError, match=r"never pays: it gave 0 to every one of 12 reference answers, such as .*#### 7"),
    ):
        check_references(graders, GRADER, TASKS, 12, False)
    with GraderSet.from_defs({GRADER: python("return 1.0 if item['id'] == 't3' else None")}) as graders:
        assert check_references(graders, GRADER, TASKS, 12, False) is True


def test_definitions_of_every_kind_of_file(tmp_path):
    definition = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}",
                  "reference": "{{ item.answer }}", "name": "exact"}  # fmt: skip
    plain, wrapped = tmp_path / "a.json", tmp_path / "b.json"
    plain.write_text(json.dumps(definition))
    wrapped.write_text(json.dumps({"grader": definition}))
    assert read_grader(plain) == read_grader(wrapped) == definition
    check_definition(definition, "a.json")
    source = tmp_path / "c.py"
    source.write_text("def grade(sample, item):\n    return 1.0\n")
    assert read_grader(source) == {"type": "python", "source": source.read_text()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"type": "score_model"}', r"a\.json: the grader type 'score_model' is unknown.*Fix: use one of"),
        ("a.json", '{"type": "string_check", "operation": "eq"}', r"needs 'input'"),
        ("a.json", "[", r"not JSON"),
        ("a.py", "def grade(sample, item)\n    return 1", r"a\.py, line 1: not Python"),
        ("a.py", "def score(sample, item):\n    return 1", r"the source defines no grade"),
        ("a.txt", "x", r"neither \.json nor \.py"),
    ],
)
def test_a_definition_that_cannot_be_used_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        check_definition(read_grader(tmp_path / name), str(tmp_path / name))
