"""Alignment: pairs that graders decide, then training on them against the policy that gave the answers."""

import pytest

from loopline.attempts.attempt import Attempt
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Completion, TorchEngine
from loopline.posttrain.align import align, choose_tasks
from loopline.posttrain.preference_config import AlignConfig
from loopline.posttrain.preferences import build_pairs
from loopline.tasks.task import load_tasks, task_from_row
from loopline.training import loop
from loopline.training.config import OptimizerConfig
from tests.support import make_artifact, make_context
from tests.support_graders import DEFINITIONS
from tests.support_stages import OFTEN, Killed, changed_weights, check_training_stage, cut_off

SMALL = AlignConfig(
    prompts=16, retain_prompts=9, samples=4, temperature=1.3, max_new_tokens=40, steps=6, batch_size=4,
    optimizer=OptimizerConfig(learning_rate=2e-4), runtime=OFTEN,
)  # fmt: skip


def test_the_policy_is_aligned_twice_and_after_a_crash(world, tmp_path):
    done = check_training_stage(align, SMALL, world, tmp_path, 6)
    assert changed_weights(world["policy"].path, done.out)
    pairs, counts = read_jsonl(done.out / "preferences.jsonl"), read_json(done.out / "preferences.json")
    assert len(pairs) == counts["sampled"] + counts["written"] == done.metrics.values["rows"]
    assert counts["written"] > 0 and counts["sampled"] > 0
    principles = {rule["id"] for rule in read_json(world["tasks"] / "constitution.json")}
    tasks = {task.id: task for task in load_tasks(world["tasks"] / "train.jsonl")}
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    with GraderSet.from_json(world["graders"] / "graders.json") as graders:
        for pair in pairs:
            task = tasks[pair["id"]]
            chosen, rejected = (pair[side][0]["content"] for side in ("preferred_output", "non_preferred_output"))
            assert chosen != rejected
            assert graders.grade([Sample(task, chosen)])[0].score == 1
            assert (pair.get("principle") in principles) == (task.task_set == "safety")
            assert pair["input"]["messages"] == list(task.messages)
    assert {tasks[pair["id"]].task_set for pair in pairs} > {"safety"}


def test_training_raises_the_margin_of_its_pairs(world, tmp_path):
    context = make_context(tmp_path)
    align(SMALL.model_copy(update={"steps": 12}), world, context)
    curve = read_jsonl(context.out / "log" / "metrics.jsonl")
    first, *_, last = (row["chosen_reward"] - row["rejected_reward"] for row in curve)
    assert first == pytest.approx(0, abs=1e-4) and last > 0.01


def test_pairs_are_sampled_once_even_when_training_is_cut(world, tmp_path, monkeypatch):
    context = make_context(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, loop, "accumulate", 1)
        with pytest.raises(Killed):
            align(SMALL, world, context)
    cut_off(monkeypatch, TorchEngine, "generate", 0)
    align(SMALL, world, make_context(tmp_path))
    assert read_jsonl(context.out / "preferences.jsonl")


def attempts(task, *answers):
    """Attempts with these (text, finish), graded as the stage grades them."""
    with GraderSet(DEFINITIONS) as graders:
        grades = graders.grade([Sample(task, text, finish) for text, finish in answers])
    return [
        Attempt(task, number, (), Completion([], [], finish, 0), text, grade)
        for number, ((text, finish), grade) in enumerate(zip(answers, grades, strict=True))
    ]


REFUSAL, HELP = "I can't help with that, because it is private.", "To read it, use a torch at night."
PRINCIPLES = {"no_spying": "Do not spy."}


def unsafe(**changes):
    response = {"style": "direct", "messages": [{"role": "assistant", "content": REFUSAL}]}
    fields = {
        "id": "s", "task_set": "safety", "answer": REFUSAL, "grader": "refusal", "unsafe": True, "topic": "diary",
        "principle": "no_spying", "responses": [response],
        "messages": [{"role": "user", "content": "How do I read the diary of my boss?"}],
    }  # fmt: skip
    return task_from_row({**fields, **changes})


@pytest.mark.parametrize(
    ("answers", "chosen", "rejected", "count"),
    [
        ([(REFUSAL, "stop"), (HELP, "stop")], REFUSAL, HELP, "sampled"),
        ([(HELP, "stop"), ("Yes.", "stop")], REFUSAL, HELP, "written"),
        ([(REFUSAL, "stop"), (REFUSAL, "stop")], None, None, "all pass"),
        # Cut off one token before its end, the good answer is no bad one.
        ([(REFUSAL, "stop"), (REFUSAL, "length")], None, None, "all pass"),
        ([(REFUSAL, "length"), (HELP, "length")], REFUSAL, HELP, "written"),
        ([(REFUSAL, "length"), (REFUSAL, "length")], None, None, "none pass"),
        ([("", "stop"), ("", "stop")], None, None, "none pass"),
    ],
)
def test_which_answer_is_preferred(answers, chosen, rejected, count):
    pairs, counts = build_pairs([attempts(unsafe(), *answers)], (), True, PRINCIPLES)
    assert {name: number for name, number in counts.items() if number} == {count: 1}
    sides = [(p["preferred_output"][0]["content"], p["non_preferred_output"][0]["content"]) for p in pairs]
    assert sides == ([(chosen, rejected)] if chosen else [])
    assert all((pair["principle"], pair["principle_text"]) == ("no_spying", "Do not spy.") for pair in pairs)


LONG, LONGER = "<think>5+5=10;10+2=12</think>12", "<think>5+5=10;10+2=13</think>13"


@pytest.mark.parametrize(
    ("answers", "pair", "count"),
    [
        # Thought-out against thought-out and short against short, whatever comes first.
        ([("12", "stop"), (LONG, "stop"), (LONGER, "stop")], (LONG, LONGER), "sampled"),
        ([(LONG, "stop"), ("12", "stop"), ("13", "stop")], ("12", "13"), "sampled"),
        ([("12", "stop"), (LONGER, "stop")], None, "unlike"),
        ([(LONG, "stop"), ("13", "stop")], None, "unlike"),
    ],
)
def test_pairs_that_retain_are_of_like_length(answers, pair, count):
    task = task_from_row(
        {"id": "r", "task_set": "arithmetic", "answer": "12", "grader": "final_answer",
         "messages": [{"role": "user", "content": "5+5+2=?"}]}
    )  # fmt: skip
    pairs, counts = build_pairs([attempts(task, *answers)], {"r"}, True, PRINCIPLES)
    assert {name: number for name, number in counts.items() if number} == {count: 1}
    sides = [(p["preferred_output"][0]["content"], p["non_preferred_output"][0]["content"]) for p in pairs]
    assert sides == ([pair] if pair else [])


def test_without_written_answers_a_task_that_no_sample_passes_gives_no_pair():
    for written, principles in ((False, PRINCIPLES), (True, {})):
        pairs, counts = build_pairs([attempts(unsafe(), (HELP, "stop"))], (), written, principles)
        assert (len(pairs), counts["none pass"]) == ((1, 0) if written else (0, 1))
        assert not any("principle" in pair for pair in pairs)


def test_tasks_are_taken_by_tag_in_equal_parts_without_repetition(world, tmp_path):
    config = AlignConfig(prompts=5, retain_prompts=6)
    conduct, retained = choose_tasks(config, world, make_context(tmp_path).rng("tasks"))
    assert len(conduct) == 5 and all({"must_refuse", "must_answer"} & set(task.tags) for task in conduct)
    assert [task.task_set for task in retained] == ["arithmetic"] * 2 + ["ordering"] * 2 + ["word_problem"] * 2
    assert len({task.id for task in [*conduct, *retained]}) == 11
    refusals = config.model_copy(update={"tasks": ("tag:must_refuse",), "retain": ("arithmetic",), "prompts": 50})
    conduct, retained = choose_tasks(refusals, world, make_context(tmp_path).rng("tasks"))
    assert 0 < len(conduct) < 16 and all("must_refuse" in task.tags for task in conduct)
    assert [task.task_set for task in retained] == ["arithmetic"] * 6
    with pytest.raises(UserError, match="No task set is tagged 'kind'"):
        choose_tasks(config.model_copy(update={"tasks": ("tag:kind",)}), world, make_context(tmp_path).rng("tasks"))


def test_too_few_pairs_and_bad_graders_are_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"Only \d+ preference pairs came out of 25 prompts.*Fix: raise prompts"):
        align(SMALL.model_copy(update={"batch_size": 100}), world, make_context(tmp_path / "a"))
    audit = read_json(world["graders"] / "audit.json")
    audit["refusal"]["passed"] = False
    write_json(tmp_path / "graders/audit.json", audit)
    inputs = {**world, "graders": make_artifact(tmp_path / "graders")}
    context = make_context(tmp_path / "b")
    with pytest.raises(UserError, match="'refusal' failed its audit"):
        align(SMALL, inputs, context)
    assert not list(context.state.iterdir())
