"""Graders are read, audited and tried out; a bad one is refused in words, a weak policy is not blamed on it."""

import json

import pytest

from loopline.base.errors import UserError
from loopline.commands.config import GRADER, PROMPTS, ProbeConfig
from loopline.commands.graders import audit_answers, check_references, judge, load_grader, that_fit
from loopline.grading.grade import Grade, Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.task import Task

SOLVED = "She sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72"


def task(number, answer="", **item):
    return Task(
        id=f"t{number}", task_set=PROMPTS, grader=GRADER, answer=answer,
        messages=({"role": "user", "content": f"How much is {number} and {number + 7}?"},), item=item,
    )  # fmt: skip


TASKS = [task(n, f"It is a sum: {n} + {n + 7} = {2 * n + 7}\n#### {2 * n + 7}") for n in range(12)]


def test_the_ready_grader_passes_its_audit():
    with GraderSet.from_defs({GRADER: load_grader("gsm8k")}) as graders:
        assert check_references(graders, TASKS, ProbeConfig()) is True
        report = audit_answers(graders, TASKS, 0, 12)[GRADER]
    assert report["passed"], report


def test_answers_that_happen_to_be_equal_are_not_the_graders_fault():
    alike = [task(n, f"{n} again\n#### {n // 2 + 100}") for n in range(12)]
    with GraderSet.from_defs({GRADER: load_grader("gsm8k")}) as graders:
        assert audit_answers(graders, alike, 0, 12)[GRADER]["passed"]
        constant = {"type": "python", "source": "def grade(sample, item):\n    return 1.0"}
    with GraderSet.from_defs({GRADER: constant}) as graders:
        assert not audit_answers(graders, alike, 0, 12)[GRADER]["passed"]


def test_without_references_the_audit_asks_what_it_can():
    bare = [task(n) for n in range(6)]
    pays = {"type": "python", "source": "def grade(sample, item):\n    return float('zebra' in sample['output_text'])"}
    junk = {"type": "python", "source": "def grade(sample, item):\n    return 1.0"}
    with GraderSet.from_defs({GRADER: pays}) as graders:
        assert check_references(graders, bare, ProbeConfig()) is None
        entry = audit_answers(graders, bare, 0, 6)[GRADER]
        assert entry["passed"] and {row["probe"] for row in entry["probes"]} == {
            "empty",
            "format_only",
            "copied_prompt",
        }
    with GraderSet.from_defs({GRADER: junk}) as graders:
        assert not audit_answers(graders, bare, 0, 6)[GRADER]["passed"]


def python(body):
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}"}


def test_a_grader_that_always_fails_or_never_pays_is_refused_on_the_references(capsys):
    with GraderSet.from_defs({GRADER: python("return 1 / 0")}) as graders:
        with pytest.raises(UserError, match=r"failed on every one of 12 reference answers.*ZeroDivisionError.*Fix: "):
            check_references(graders, TASKS, ProbeConfig())
        assert check_references(graders, TASKS, ProbeConfig(force=True)) is False
        assert "Going on, as --force-grader says" in capsys.readouterr().err
    with (
        GraderSet.from_defs({GRADER: python("return item['nothing']")}) as graders,
        pytest.raises(UserError, match="KeyError"),
    ):
        check_references(graders, TASKS, ProbeConfig())
    with (
        GraderSet.from_defs({GRADER: python("return 0")}) as graders,
        pytest.raises(UserError, match=r"never pays: it gave 0 to every one of 12 reference answers, such as .*#### 7"),
    ):
        check_references(graders, TASKS, ProbeConfig())
    with GraderSet.from_defs({GRADER: python("return 1.0 if item['id'] == 't3' else None")}) as graders:
        assert check_references(graders, TASKS, ProbeConfig()) is True


def judged(*scores, paid=True, finish="stop", force=False):
    samples = [Sample(TASKS[0], "an answer", finish) for _ in scores]
    grades = [Grade(score, evidence="it broke" if score is None else "") for score in scores]
    cut = sum(sample.finish == "length" for sample in samples)
    return judge(samples, grades, cut, paid, ProbeConfig(force=force))


def test_what_a_probe_means():
    assert judged(1.0, 0.0) == ""
    with pytest.raises(UserError, match=r"failed on 2 of 2 answers of the policy.*it broke"):
        judged(None, None)
    assert judged(None, None, force=True).startswith("The grader failed on 2 of 2")
    assert judged(None, 1.0) == "The grader failed on 1 of 2 answers of the policy; those count neither way."
    assert "the policy is too weak" in judged(0.0, 0.0)
    with pytest.raises(UserError, match=r"never pays: it gave 0 to all 2 answers of the policy, and there are no ref"):
        judged(0.0, 0.0, paid=None)
    assert "cut off at 256 tokens" in judged(0.0, 0.0, paid=None, finish="length")
    assert "earned 0.50" in judged(0.5, 0.5)


def test_definitions_of_every_kind_of_file(tmp_path):
    definition = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}",
                  "reference": "{{ item.answer }}", "name": "exact"}  # fmt: skip
    plain, wrapped = tmp_path / "a.json", tmp_path / "b.json"
    plain.write_text(json.dumps(definition))
    wrapped.write_text(json.dumps({"grader": definition}))
    assert load_grader(str(plain)) == load_grader(str(wrapped)) == definition
    source = tmp_path / "c.py"
    source.write_text("def grade(sample, item):\n    return 1.0\n")
    assert load_grader(str(source)) == {"type": "python", "source": source.read_text()}


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
        load_grader(str(tmp_path / name))
    with pytest.raises(UserError, match="There is no grader"):
        load_grader(str(tmp_path / "other.json"))


class Words:
    """Stands in for a tokenizer: a token per word."""

    def render(self, messages, add_generation_prompt=False):
        return messages[-1]["content"].split()


def test_prompts_that_leave_no_room_are_refused_or_left_out():
    long = task(1).model_copy(update={"id": "long", "messages": ({"role": "user", "content": "word " * 30},)})
    config = ProbeConfig(max_new_tokens=20)
    assert that_fit(Words(), [*TASKS, long], config, 50) == [*TASKS, long]
    with pytest.raises(UserError, match=r"1 of 13 prompts are too long: .* 49 tokens.*long, has 30.*max_new_tokens=19"):
        that_fit(Words(), [*TASKS, long], config, 49)
    assert that_fit(Words(), [*TASKS, long], config.model_copy(update={"overlong": "drop"}), 49) == TASKS
