"""Definitions as data: what is refused, what each type gives, and that failures to grade are never zeros."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_json
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.task import task_from_row
from tests.support_graders import DEFINITIONS

TASK = task_from_row(
    {
        "id": "t",
        "task_set": "x",
        "messages": [{"role": "user", "content": "Capital of France?"}],
        "answer": "Paris",
        "grader": "g",
        "level": 2,
        "more": {"city": "Paris"},
    }
)


def check(operation, output="{{ sample.output_text }}", reference="{{ item.answer }}"):
    return {"type": "string_check", "operation": operation, "input": output, "reference": reference}


def grade(definition, text, task=TASK):
    with GraderSet.from_defs({"g": definition}) as graders:
        return graders.grade([Sample(task, text)])[0]


@pytest.mark.parametrize(
    ("operation", "text", "expected"),
    [
        ("eq", "Paris", 1),
        ("eq", "paris", 0),
        ("ne", "Rome", 1),
        ("ne", "Paris", 0),
        ("like", "It is Paris.", 1),
        ("like", "It is paris.", 0),
        ("ilike", "It is paris.", 1),
        ("ilike", "It is Rome.", 0),
        ("eq", "<think>Rome?</think>Paris", 1),
    ],
)
def test_string_check(operation, text, expected):
    assert grade(check(operation), text).score == expected


def test_templates_reach_into_item_and_json_output():
    definition = check("eq", "{{ sample.output_json.answer.city }}", "{{item.more.city}}")
    assert grade(definition, '{"answer": {"city": "Paris"}}').score == 1
    assert grade(definition, '{"answer": "Paris"}').score == 0  # the policy did not write that part
    assert grade(definition, "Paris").score == 0
    missing = grade(check("eq", reference="{{ item.nowhere }}"), "Paris")
    assert missing.score is None and "item.nowhere" in missing.evidence
    assert grade(check("eq", "level {{ item.level }}: {{ sample.output_text }}", "level 2: Paris"), "Paris").score == 1


def test_a_template_in_the_output_is_not_evaluated():
    assert grade(check("eq"), "{{ item.answer }}").score == 0


@pytest.mark.parametrize(
    "metric", ["fuzzy_match", "bleu", "gleu", "cosine", "rouge_1", "rouge_2", "rouge_5", "rouge_l"]
)
def test_similarity_orders_texts(metric):
    definition = {
        "type": "text_similarity",
        "evaluation_metric": metric,
        "input": "{{ sample.output_text }}",
        "reference": "the quick brown fox jumps over the lazy dog",
    }
    same = grade(definition, "The quick brown fox jumps over the lazy dog").score
    near = grade(definition, "the quick brown fox jumps over the lazy cat").score
    far = grade(definition, "a totally different sentence").score
    assert same == pytest.approx(1)
    assert 0 <= far < near < same


def test_rouge_by_hand():
    definition = {
        "type": "text_similarity",
        "evaluation_metric": "rouge_1",
        "input": "{{ sample.output_text }}",
        "reference": "a b c d",
    }
    assert grade(definition, "a b x").score == pytest.approx(2 * 2 / (3 + 4))
    assert grade({**definition, "evaluation_metric": "rouge_2"}, "a b x").score == pytest.approx(2 * 1 / (2 + 3))
    assert grade({**definition, "evaluation_metric": "rouge_l"}, "a x d").score == pytest.approx(2 * 2 / (3 + 4))


def python(source):
    return {"type": "python", "source": source}


def test_python_graders_run_in_the_sandbox():
    source = (
        "import json, unicodedata\ndef grade(sample, item):\n    return 0.5 * (sample['output_text'] == item['answer'])"
    )
    assert grade(python(source), "Paris").score == 0.5
    assert grade(python(source), "Rome").score == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 2", "not 0..1"),
        ("return None", "not 0..1"),
        ("return 'yes'", "not 0..1"),
        ("return float('nan')", "not 0..1"),
        ("raise ValueError('broken')", "ValueError: broken"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended without a result"),
    ],
)
def test_a_python_grader_that_fails_gives_no_score(body, said):
    found = grade(python(f"def grade(sample, item):\n    {body}"), "Paris")
    assert found.score is None and said in found.evidence and found.flags == ("grader_failed",)


def test_multi_combines_and_never_hides_a_failure():
    definition = {
        "type": "multi",
        "calculate_output": "0.7*exact + 0.2*near + 0.1*min(exact, near)",
        "graders": {"exact": check("eq"), "near": check("ilike")},
    }
    assert grade(definition, "Paris").score == 1
    assert grade(definition, "in paris").score == pytest.approx(0.2)
    broken = {**definition, "graders": {**definition["graders"], "near": python("def grade(s, i): return 1 / 0")}}
    found = grade(broken, "Paris")
    assert found.score is None and "ZeroDivisionError" in found.evidence
    outside = grade({**definition, "calculate_output": "exact + near"}, "Paris")
    assert outside.score is None and "outside 0..1" in outside.evidence
    assert grade({**definition, "calculate_output": "1/(exact-near)"}, "Paris").score is None
    assert grade({**definition, "calculate_output": "(0-exact)^0.5"}, "Paris").score is None


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"type": "score_model", "model": "x"}, "type 'score_model' is unknown"),
        ({}, "type None is unknown"),
        ("exact", "type 'exact' is unknown"),
        ({"type": "string_check", "operation": "eq", "input": "x"}, "needs 'reference'"),
        ({**check("eq"), "temperature": 1}, "has no 'temperature'"),
        (check("equals"), "operation 'equals' is unknown"),
        (check("eq", "{{ os.environ }}"), "placeholder {{ os.environ }}"),
        (check("eq", "{{ item }}"), "placeholder {{ item }}"),
        ({"type": "text_similarity", "evaluation_metric": "meteor", "input": "", "reference": ""}, "meteor"),
        (python("def score(s, i): return 1"), "defines no grade"),
        ({"type": "multi", "calculate_output": "a*b", "graders": {"a": check("eq")}}, "holds 'b'"),
        ({"type": "multi", "calculate_output": "a.x", "graders": {"a": check("eq")}}, "holds 'a.x'"),
        ({"type": "multi", "calculate_output": "__import__('os')", "graders": {"a": check("eq")}}, "holds"),
        ({"type": "multi", "calculate_output": "(lambda: 1)()", "graders": {"a": check("eq")}}, "holds"),
        ({"type": "multi", "calculate_output": "a +", "graders": {"a": check("eq")}}, "not arithmetic"),
        ({"type": "multi", "calculate_output": "a", "graders": {"a-b": check("eq")}}, "cannot stand in a formula"),
    ],
)
def test_bad_definitions_are_refused_by_name(definition, said):
    with pytest.raises(UserError, match="The grader broken") as caught:
        GraderSet.from_defs({"broken": definition})
    assert said in str(caught.value)


def test_an_unknown_grader_is_named(graders):
    with pytest.raises(UserError, match="no grader 'g' among"):
        graders.grade([Sample(TASK, "Paris")])


def test_each_sample_goes_to_its_own_grader_and_order_is_kept(tasks, graders):
    mixed = tasks[::7] + tasks[::11]
    samples = [Sample(task, task.answer if number % 2 else "nonsense") for number, task in enumerate(mixed)]
    assert [grade.score for grade in graders.grade(samples)] == [float(number % 2) for number in range(len(mixed))]


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "graders.json", DEFINITIONS)
    with GraderSet.from_json(tmp_path / "graders.json") as graders:
        assert graders.definitions == DEFINITIONS
    write_json(tmp_path / "graders.json", [])
    with pytest.raises(UserError, match="not a JSON object"):
        GraderSet.from_json(tmp_path / "graders.json")


CODE = task_from_row(
    {
        "id": "c",
        "task_set": "code",
        "messages": [{"role": "user", "content": "Write f(x)."}],
        "answer": "def f(x): return x == 1",
        "grader": "code_tests",
        "entry": "f",
        "tests": [[[1], True], [[2], False]],
    }
)


@pytest.mark.parametrize(
    ("text", "score", "flag"),
    [
        ("def f(x): return x == 1", 1, None),
        ("```python\ndef f(x):\n    return x == 1\n```", 1, None),
        ("<think>compare</think>def f(x): return x == 1", 1, None),
        ("def f(x): return int(x == 1)", 0, None),
        ("def f(x): return True", 0, None),
        ("def g(x): return x == 1", 0, None),
        ("import sys; sys.exit(0)", 0, "hack_exit"),
        ("import os; os._exit(0)", 0, "crashed"),
        ("class A:\n    def __eq__(s, o): return True\ndef f(x): return A()", 0, "hack_object"),
        ("def f(x):\n    open('/tmp/x', 'w')\n    return x == 1", 0, "hack_open"),
        ("def f(x):\n    while True: pass", 0, "timeout"),
        ("def f(x): return 'a' * 10 ** 11", 0, "oom"),
        ("<think>def f(x): return x == 1", 0, "unclosed_think"),
    ],
)
def test_code_is_graded_by_values(graders, text, score, flag):
    (found,) = graders.grade([Sample(CODE, text)])
    assert found.score == score
    assert flag is None or flag in found.flags
    # The next grade is right, whatever this one did.
    assert graders.grade([Sample(CODE, CODE.answer)])[0].score == 1


def test_a_failing_sandbox_gives_no_score(monkeypatch):
    from loopline.sandbox import runner

    with GraderSet.from_defs({"code_tests": {"type": "code_tests"}}) as graders:
        unavailable = runner.Result("unavailable", error="two workers fell silent")
        monkeypatch.setattr(graders._pool, "map", lambda jobs: [[unavailable] * len(job.calls) for job in jobs])
        (found,) = graders.grade([Sample(CODE, CODE.answer)])
    assert found.score is None and found.flags == ("sandbox_unavailable",)


def test_a_code_task_without_tests_is_named(graders):
    with pytest.raises(UserError, match="code task c has no tests"):
        graders.grade([Sample(CODE.model_copy(update={"item": {}}), "def f(x): return 1")])
