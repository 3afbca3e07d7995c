"""Reasoning RL end to end: graders it may trust, rollouts on disk, words for every step, one result per seed."""

import json
import re

import pytest

from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, Killed, assert_checkpoint, changed_weights, check_training_stage, cut_off
from throughline.base.errors import UserError
from throughline.base.files import read_json, read_jsonl, write_json, write_jsonl
from throughline.grading.reward import RewardConfig
from throughline.inference.engine import TorchEngine
from throughline.posttrain import grpo as module
from throughline.posttrain.config import GRPOConfig
from throughline.posttrain.stage import grpo

CONFIG = GRPOConfig(
    steps=6,
    prompts_per_step=6,
    group_size=6,
    temperature=1.4,
    max_new_tokens=10,
    shares={"arithmetic": 0.7, "ordering": 0.3},
    runtime=OFTEN,
)


def test_a_policy_is_trained_twice_and_after_a_crash(world, tmp_path):
    done = check_training_stage(grpo, CONFIG, world, tmp_path, 6)
    assert changed_weights(world["policy"].path, done.out)
    rollouts = read_jsonl(done.out / "rollouts.jsonl")
    assert [row["step"] for row in rollouts] == [step for step in range(6) for _ in range(6)]
    tasks = {row["id"]: row for row in read_jsonl(world["tasks"] / "train.jsonl")}
    for row in rollouts:
        task = tasks[row["task"]]
        assert row["messages"] == task["messages"] and row["prompt"] == task["messages"][-1]["content"]
        assert len(row["outputs"]) == 6
        for output in row["outputs"]:
            right = output["text"] == task["answer"] and output["finish"] == "stop"
            assert output["score"] == output["reward"] == float(right)
            assert 1 <= output["tokens"] <= 10
    last = [output["reward"] for row in rollouts[-6:] for output in row["outputs"]]
    assert done.metrics.values["reward"] == pytest.approx(sum(last) / len(last))


def test_every_step_says_what_it_learnt_from(world, tmp_path):
    done = check_training_stage(grpo, CONFIG, world, tmp_path, 6)
    for side in ("whole", "torn"):
        lines = (tmp_path / side / "out/log/why.txt").read_text().splitlines()
        assert [int(line.split(":")[0].removeprefix("step ")) for line in lines] == list(range(6))
    rows = [json.loads(line) for line in (done.out / "log/metrics.jsonl").read_text().splitlines()]
    for line, row in zip(lines, rows, strict=True):
        assert f"reward {row['reward']:.2f}; groups {row['rollout/solved_share']:.0%} solved" in line
        assert line.endswith(".")


def test_a_policy_that_never_finishes_is_told_so(world, tmp_path):
    context = make_context(tmp_path)
    grpo(CONFIG.model_copy(update={"max_new_tokens": 1, "steps": 2}), world, context)
    lines = (context.out / "log/why.txt").read_text().splitlines()
    assert all("nothing to learn: every answer is cut off, raise max_new_tokens." in line for line in lines)
    # Nothing was learnt, and the weights say so too.
    assert not changed_weights(world["policy"].path, context.out)
    assert_checkpoint(context.out, frozenset({"rollouts.jsonl"}))


def failing(world, path, name, **changes):
    """The world with a graders artifact whose audit says something else about `name`."""
    audit = read_json(world["graders"] / "audit.json")
    if changes:
        audit[name] = {**audit[name], **changes}
    else:
        del audit[name]
    write_json(path / "audit.json", audit)
    write_json(path / "graders.json", read_json(world["graders"] / "graders.json"))
    return {**world, "graders": make_artifact(path)}


def test_graders_that_failed_their_audit_are_refused_before_any_compute(world, tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(module, "load_model", never)
    paid = [{"probe": "answer_spam", "n": 4, "mean": 0.9, "max": 1.0, "pays": True}]
    inputs = failing(world, tmp_path / "failed", "final_answer", passed=False, probes=paid)
    context = make_context(tmp_path / "a")
    with pytest.raises(UserError, match=r"'final_answer' failed its audit.*: answer_spam pays 0\.90.*Fix: "):
        grpo(CONFIG, inputs, context)
    inputs = failing(world, tmp_path / "missing", "final_answer")
    with pytest.raises(UserError, match="'final_answer' was never audited"):
        grpo(CONFIG, inputs, context)
    # Further graders that the reward is made of are held to the same.
    reward = {"reward": RewardConfig(weights={"outcome": 1.0, "naive_contains": 0.1})}
    with pytest.raises(UserError, match="'naive_contains' failed its audit.*: answer_spam pays"):
        grpo(CONFIG.model_copy(update=reward), world, context)
    reward = {"reward": RewardConfig(weights={"elegance": 1.0})}
    with pytest.raises(UserError, match="'elegance' was never audited"):
        grpo(CONFIG.model_copy(update=reward), world, context)
    assert not list(context.out.rglob("*.*"))


def test_the_audit_names_what_is_wrong_when_only_the_reference_fails(world, tmp_path):
    probes = [{"probe": "reference", "n": 4, "mean": 0.1, "max": 1.0, "pays": False}]
    inputs = failing(world, tmp_path / "graders", "final_answer", passed=False, probes=probes)
    with pytest.raises(UserError, match=r"'final_answer' failed its audit.*: reference answers score 0\.10"):
        grpo(CONFIG, inputs, make_context(tmp_path / "a"))


def test_conversations_with_a_system_turn_keep_it(world, tmp_path):
    rows = [row for row in read_jsonl(world["tasks"] / "train.jsonl") if row["family"] == "arithmetic"]
    for row in rows:
        row["messages"] = [{"role": "system", "content": "Add."}, *row["messages"]]
    write_jsonl(tmp_path / "tasks/train.jsonl", rows)
    context = make_context(tmp_path / "c")
    inputs = {**world, "tasks": make_artifact(tmp_path / "tasks")}
    grpo(CONFIG.model_copy(update={"steps": 1, "shares": {"arithmetic": 1.0}}), inputs, context)
    assert all(row["messages"][0]["content"] == "Add." for row in read_jsonl(context.out / "rollouts.jsonl"))


def test_an_interruption_while_sampling_loses_nothing(world, tmp_path):
    whole, torn = make_context(tmp_path / "whole"), make_context(tmp_path / "torn")
    grpo(CONFIG, world, whole)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, TorchEngine, "generate", 3)
        with pytest.raises(Killed):
            grpo(CONFIG, world, torn)
    grpo(CONFIG, world, torn)
    assert not changed_weights(whole.out, torn.out)
    assert (whole.out / "rollouts.jsonl").read_bytes() == (torn.out / "rollouts.jsonl").read_bytes()


@pytest.mark.parametrize(("role", "file"), [("graders", "audit.json"), ("tasks", "train.jsonl")])
def test_missing_files_are_named(world, tmp_path, role, file):
    inputs = {**world, role: make_artifact(tmp_path / "empty")}
    with pytest.raises(UserError, match=rf"no file .*{re.escape(file)}.*Fix: "):
        grpo(CONFIG, inputs, make_context(tmp_path / "c"))
