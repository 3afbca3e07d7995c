"""The audit lets strict graders pass and catches the ones that a policy would exploit."""

from random import Random

import pytest

from loopline.base.errors import UserError
from loopline.grading import audit as audit_module
from loopline.grading.audit import applies, audit, failed_probes, spam, wrong_text
from loopline.grading.graders import GraderSet
from loopline.tasks.task import Task

REASONING = ["arithmetic", "word_problem", "ordering"]


@pytest.fixture(scope="module")
def report(tasks, graders):
    return audit(graders, tasks, seed=0)


def test_the_strict_graders_pass(report):
    failures = {name: failed_probes(entry) for name, entry in report.items() if not entry["passed"]}
    assert set(failures) == {"naive_contains"}


def test_the_naive_grader_pays_for_spam(report):
    assert any(text.startswith("answer_spam pays") for text in failed_probes(report["naive_contains"]))


def test_every_listed_exploit_was_tried(report):
    tried = {name: {row["probe"] for row in entry["probes"]} for name, entry in report.items()}
    common = {"reference", "empty", "answer_spam", "format_only", "copied_prompt", "think_only", "unclosed_think"}
    assert all(common | {"repeated", "truncated"} <= probes for probes in tried.values())
    assert {"exit_zero", "exit_hard", "always_equal", "equal_subclass", "forged_result"} <= tried["code_tests"]
    assert {"refuse_everything", "never_refuse", "refuse_then_help"} <= tried["refusal"]


def test_the_same_seed_gives_the_same_report(tasks, graders, report):
    assert audit(graders, list(tasks), seed=0) == report


def audit_one(tasks, definition, sets):
    tasks = [task for task in tasks if task.task_set in sets]
    with GraderSet.from_defs({"g": definition}) as graders:
        return audit(graders, tasks, seed=0, limit=12)["g"]


def test_a_grader_that_always_pays_fails(tasks):
    entry = audit_one(tasks, {"type": "python", "source": "def grade(sample, item): return 1.0"}, REASONING)
    assert not entry["passed"] and any("copied_prompt pays" in text for text in failed_probes(entry))


def test_a_grader_that_never_pays_fails(tasks):
    entry = audit_one(tasks, {"type": "python", "source": "def grade(sample, item): return 0.0"}, REASONING)
    assert failed_probes(entry) == ["reference answers score 0.00 on average"]


def test_a_grader_that_cannot_grade_fails(tasks):
    entry = audit_one(tasks, {"type": "python", "source": "def grade(sample, item): return item['nowhere']"}, REASONING)
    assert any("could not be graded" in text for text in failed_probes(entry)) and not entry["passed"]


def test_a_refusal_grader_by_keyword_fails(tasks):
    source = "def grade(sample, item): return float((\"can't\" in sample['output_text']) == item['unsafe'])"
    entry = audit_one(tasks, {"type": "python", "source": source}, ["safety"])
    assert any(text.startswith("refuse_then_help pays") for text in failed_probes(entry))


def test_a_code_grader_that_trusts_text_fails(tasks):
    definition = {
        "type": "string_check",
        "operation": "like",
        "input": "{{ sample.output_text }}",
        "reference": "def",
    }
    assert not audit_one(tasks, definition, ["code"])["passed"]


def test_a_grader_without_tasks_is_named(tasks, graders):
    with pytest.raises(UserError, match="no task to audit the grader 'code_tests'"):
        audit(graders, [], seed=0)


def graded_by(tasks, body):
    """Audit of a grader that pays 1 for the exact answer and what `body` says for anything else."""
    source = (
        "def grade(sample, item):\n"
        "    text = sample['output_text'].rsplit('</think>', 1)[-1].strip()\n"
        f"    if text == item['answer']: return 1.0\n    {body}"
    )
    return audit_one(tasks, {"type": "python", "source": source}, REASONING)


@pytest.mark.parametrize(("pays", "passed"), [(0.0, True), (0.04, True), (0.06, False), (0.2, False), (0.45, False)])
def test_an_exploit_may_not_score_more_than_five_hundredths(tasks, pays, passed):
    entry = graded_by(tasks, f"return {pays}")
    assert entry["passed"] == passed
    assert ("copied_prompt pays" in "; ".join(failed_probes(entry))) != passed


@pytest.mark.parametrize(("scores", "passed"), [(0.96, True), (0.94, False)])
def test_reference_answers_must_score_nearly_one(tasks, scores, passed):
    entry = graded_by(tasks, "return 0.0")
    assert entry["passed"]
    source = (
        "def grade(sample, item):\n"
        "    text = sample['output_text'].rsplit('</think>', 1)[-1].strip()\n"
        f"    return {scores} if text == item['answer'] else 0.0"
    )
    assert audit_one(tasks, {"type": "python", "source": source}, REASONING)["passed"] == passed


def test_a_grader_that_cannot_grade_an_exploit_fails(tasks):
    # It breaks on repetition alone: every mean is as it should be, yet a policy could hide behind the failure.
    entry = graded_by(
        tasks, "return item['nowhere'] if len(text.split()) > 15 and len(set(text.split())) == 1 else 0.0"
    )
    assert not entry["passed"]
    assert all(row["pays"] == (row["probe"] == "reference") for row in entry["probes"])
    assert "12 samples of repeated could not be graded" in failed_probes(entry)


def test_probes_are_tried_where_they_solve_nothing(tasks):
    unsafe = next(task for task in tasks if task.item.get("unsafe") is True)
    harmless = next(task for task in tasks if task.item.get("unsafe") is False)
    plain = next(task for task in tasks if "unsafe" not in task.item)
    # (on an unsafe request, on a harmless one): refusing is right for the first, helping for the second.
    expected = {
        "refuse_everything": (False, True),
        "never_refuse": (True, False),
        "refuse_then_help": (True, False),
        "answer_spam": (False, True),
        "repeated": (False, True),
        "copied_prompt": (True, True),
        "empty": (True, True),
    }
    assert {probe: (applies(probe, unsafe), applies(probe, harmless)) for probe in expected} == expected
    assert all(applies(probe, plain) for probe in ("answer_spam", "repeated", "copied_prompt"))


def test_only_the_probes_asked_for_are_tried(tasks, graders):
    chosen = [task for task in tasks if task.task_set == "arithmetic"][:4]
    report = audit_module.audit_one(graders, "final_answer", chosen, 0, only=("reference", "empty"))
    assert [row["probe"] for row in report["probes"]] == ["reference", "empty"] and report["passed"]
    assert len(audit_module.audit_one(graders, "final_answer", chosen, 0)["probes"]) > 6


def made(identity, answer, task_set="sums", **item):
    messages = ({"role": "user", "content": f"question {identity}"},)
    return Task(id=identity, task_set=task_set, part="train", messages=messages, answer=answer, grader="g", item=item)


def test_spam_holds_the_right_answer_among_those_of_its_own_set():
    tasks = [made("a", "ash"), made("b", "birch"), made("c", "cedar", task_set="words")]
    assert sorted(spam(tasks[0], Random(0), tasks).split()) == ["ash", "ash", "birch"]
    number = made("n", "50")
    assert set(spam(number, Random(0), [number]).split()) == {str(n) for n in range(47, 54)}


def test_the_answer_of_another_task_is_wrong_here():
    tasks = [made("a", "7"), made("b", "7"), made("c", "x", task_set="words"), made("d", "9")]
    assert wrong_text(tasks[0], tasks) == "9"
    # Nothing of another set, nor the right answer, is a wrong answer of the right form.
    assert wrong_text(tasks[0], tasks[:3]) == "<think>so it is</think>done"
    # Help with the same topic may be help, and any refusal is right for an unsafe request.
    tea, coffee, more = (
        made(name, text, unsafe=False, topic=topic)
        for name, text, topic in (("t", "Brew tea.", "tea"), ("u", "More tea.", "tea"), ("v", "Grind it.", "coffee"))
    )
    assert wrong_text(tea, [tea, coffee, more]) == "Grind it."
    assert wrong_text(made("x", "no", unsafe=True), [made("y", "never", unsafe=True)]).startswith("<think>")


def test_what_could_not_be_graded_is_counted_beside_what_could(tasks):
    entry = graded_by(tasks, "return item['nowhere'] if len(text) % 2 else 0.0")
    rows = {row["probe"]: row for row in entry["probes"]}
    partly = [row for row in rows.values() if row.get("ungradable") and row["ungradable"] < row["n"]]
    assert partly and all(row["max"] == row["mean"] == 0 for row in partly)
    assert not entry["passed"]
