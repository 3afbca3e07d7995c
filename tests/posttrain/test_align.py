"""Alignment: pairs that a written constitution decides, then DPO against the policy that gave the answers."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json
from loopline.chat.load import load_tokenizer
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Completion, Sampling, TorchEngine
from loopline.posttrain.align import choose_tasks
from loopline.posttrain.config import AlignConfig
from loopline.posttrain.preferences import build_pairs
from loopline.posttrain.stage import align
from loopline.tasks.task import load_tasks, task_from_row
from loopline.training import loop
from tests.support import make_artifact, make_context
from tests.support_graders import DEFINITIONS
from tests.support_stages import OFTEN, Killed, changed_weights, check_training_stage, cut_off

SMALL = AlignConfig(
    prompts=16, retain_prompts=9, samples=4, temperature=1.3, max_new_tokens=40, steps=6, pairs_per_step=4,
    runtime=OFTEN,
)  # fmt: skip


def test_the_policy_is_aligned_twice_and_after_a_crash(world, tmp_path):
    done = check_training_stage(align, SMALL, world, tmp_path, 6)
    assert changed_weights(world["policy"].path, done.out)
    pairs, counts = read_jsonl(done.out / "preferences.jsonl"), read_json(done.out / "preferences.json")
    assert len(pairs) == counts["sampled"] + counts["revised"] == done.metrics.values["pairs"]
    assert counts["revised"] > 0 and counts["sampled"] > 0
    principles = {rule["id"] for rule in read_json(world["tasks"] / "constitution.json")}
    tasks = {task.id: task for task in load_tasks(world["tasks"] / "train.jsonl")}
    assert len({pair["task"] for pair in pairs}) == len(pairs)
    with GraderSet.from_json(world["graders"] / "graders.json") as graders:
        for pair in pairs:
            task = tasks[pair["task"]]
            chosen, rejected = (pair[side][0]["content"] for side in ("preferred_output", "non_preferred_output"))
            assert chosen != rejected
            assert graders.grade([Sample(task, chosen)])[0].score == 1
            assert pair["principle"] == (task.item["principle"] if task.task_set == "safety" else "correct")
            assert (pair["principle"] in principles) == (task.task_set == "safety")
            assert pair["input"]["messages"] == list(task.messages)
    assert {tasks[pair["task"]].task_set for pair in pairs} > {"safety"}


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
    saved = (context.state / "preferences.jsonl").read_bytes()
    cut_off(monkeypatch, TorchEngine, "generate", 0)
    align(SMALL, world, make_context(tmp_path))
    assert (context.out / "preferences.jsonl").read_bytes() == saved


class Says:
    """An engine that answers each prompt with given (text, finish) pairs."""

    def __init__(self, tokenizer, *answers):
        self.tokenizer, self.answers = tokenizer, answers

    def generate(self, prompts, sampling, seeds=None, finished=None):
        def complete(text, finish):
            ids = self.tokenizer.encode(text) + ([1] if finish == "stop" else [])
            return Completion(ids, [-1.0] * len(ids), finish, 0)

        return [[complete(*answer) for answer in self.answers] for _ in prompts]


REFUSAL, HELP = "I can't help with that, because it is private.", "To read it, use a torch at night."
CONSTITUTION = {"no_spying": {"id": "no_spying", "text": "Do not spy."}}


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
        ([(HELP, "stop"), ("Yes.", "stop")], REFUSAL, HELP, "revised"),
        ([(REFUSAL, "stop"), (REFUSAL, "stop")], None, None, "all follow"),
        # Cut off one token before its end, the good answer is no bad one.
        ([(REFUSAL, "stop"), (REFUSAL, "length")], None, None, "all follow"),
        ([(REFUSAL, "length"), (HELP, "length")], REFUSAL, HELP, "revised"),
        ([(REFUSAL, "length"), (REFUSAL, "length")], None, None, "none follow"),
        ([("", "stop"), ("", "stop")], None, None, "none follow"),
    ],
)
def test_which_answer_is_preferred(world, answers, chosen, rejected, count):
    engine = Says(load_tokenizer(world["policy"].path), *answers)
    with GraderSet(DEFINITIONS) as graders:
        pairs, counts = build_pairs(engine, [unsafe()], graders, CONSTITUTION, Sampling(n=2), 0)
    assert {name: number for name, number in counts.items() if number} == {count: 1}
    sides = [(p["preferred_output"][0]["content"], p["non_preferred_output"][0]["content"]) for p in pairs]
    assert sides == ([(chosen, rejected)] if chosen else [])


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
def test_reasoning_pairs_are_of_like_length(world, answers, pair, count):
    task = task_from_row(
        {"id": "r", "task_set": "arithmetic", "answer": "12", "grader": "final_answer",
         "messages": [{"role": "user", "content": "5+5+2=?"}]}
    )  # fmt: skip
    engine = Says(load_tokenizer(world["policy"].path), *answers)
    with GraderSet(DEFINITIONS) as graders:
        pairs, counts = build_pairs(engine, [task], graders, CONSTITUTION, Sampling(n=len(answers)), 0)
    assert {name: number for name, number in counts.items() if number} == {count: 1}
    sides = [(p["preferred_output"][0]["content"], p["non_preferred_output"][0]["content"]) for p in pairs]
    assert sides == ([pair] if pair else [])


def test_a_principle_that_is_not_written_down_revises_nothing(world):
    engine = Says(load_tokenizer(world["policy"].path), (HELP, "stop"))
    with GraderSet(DEFINITIONS) as graders:
        pairs, counts = build_pairs(engine, [unsafe()], graders, {}, Sampling(n=1), 0)
    assert pairs == [] and counts["none follow"] == 1


def test_tasks_are_drawn_in_equal_parts_without_repetition(world, tmp_path):
    tasks = load_tasks(world["tasks"] / "train.jsonl", ["safety", "arithmetic", "word_problem", "ordering"])
    rng = make_context(tmp_path).rng("tasks")
    chosen = choose_tasks(tasks, AlignConfig(prompts=5, retain_prompts=6), rng)
    task_sets = [task.task_set for task in chosen]
    assert task_sets == ["safety"] * 5 + ["arithmetic"] * 2 + ["ordering"] * 2 + ["word_problem"] * 2
    assert len({task.id for task in chosen}) == len(chosen)


def test_too_few_pairs_and_bad_graders_are_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"Only \d+ preference pairs came out of 25 prompts.*Fix: raise align\.prompts"):
        align(SMALL.model_copy(update={"pairs_per_step": 100}), world, make_context(tmp_path / "a"))
    audit = read_json(world["graders"] / "audit.json")
    audit["refusal"]["passed"] = False
    write_json(tmp_path / "graders/audit.json", audit)
    inputs = {**world, "graders": make_artifact(tmp_path / "graders")}
    context = make_context(tmp_path / "b")
    with pytest.raises(UserError, match="'refusal' failed its audit"):
        align(SMALL, inputs, context)
    assert not list(context.state.iterdir())
