"""Reasoning RL end to end: graders it may trust, rollouts on disk, words for every step, one result per seed."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.grading.reward import RewardConfig
from loopline.inference.engine import TorchEngine
from loopline.posttrain import grpo as module
from loopline.posttrain.config import GRPOConfig
from loopline.posttrain.grpo import grpo
from loopline.rl.rollout_config import RolloutConfig, RolloutRuntime
from loopline.store.artifact import content_digest
from loopline.training.config import DevelopmentConfig
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, Killed, assert_checkpoint, changed_weights, check_training_stage, cut_off

CONFIG = GRPOConfig(
    steps=6,
    prompts_per_step=6,
    group_size=6,
    temperature=1.4,
    max_new_tokens=10,
    tasks={"arithmetic": 0.7, "ordering": 0.3},
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
    rows = [row for row in read_jsonl(world["tasks"] / "train.jsonl") if row["task_set"] == "arithmetic"]
    for row in rows:
        row["messages"] = [{"role": "system", "content": "Add."}, *row["messages"]]
    write_jsonl(tmp_path / "tasks/train.jsonl", rows)
    write_json(tmp_path / "tasks/sets.json", read_json(world["tasks"] / "sets.json"))
    context = make_context(tmp_path / "c")
    inputs = {**world, "tasks": make_artifact(tmp_path / "tasks")}
    grpo(CONFIG.model_copy(update={"steps": 1, "tasks": ("arithmetic",)}), inputs, context)
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


@pytest.mark.parametrize(("role", "file"), [("graders", "audit.json"), ("tasks", "sets.json")])
def test_missing_files_are_named(world, tmp_path, role, file):
    inputs = {**world, role: make_artifact(tmp_path / "empty")}
    with pytest.raises(UserError, match=rf"no file .*{re.escape(file)}.*Fix: "):
        grpo(CONFIG, inputs, make_context(tmp_path / "c"))


EVERYTHING = CONFIG.model_copy(
    update={
        "updates_per_rollout": 2,
        "dynamic_sampling": 1,
        "kl_coefficient": 0.02,
        "importance_correction": "token_truncate",
        "rollout": RolloutConfig(staleness=1, old_logprobs="trainer", no_think_share=0.25),
    }
)


def test_every_switch_together_survives_a_crash(world, tmp_path):
    done = check_training_stage(grpo, EVERYTHING, world, tmp_path, 6)
    rows = read_jsonl(done.out / "log/metrics.jsonl")
    assert [row["rollout/age"] for row in rows] == [0, 1, 2, 3, 2, 3]
    assert all({"reference_kl", "importance_mean", "policy_kl", "entropy"} <= row.keys() for row in rows)
    assert all(row["rollout/mismatch_max"] < 1e-4 for row in rows)
    lines = (done.out / "log/why.txt").read_text().splitlines()
    assert all("KL to the reference" in line and "importance weight" in line for line in lines)
    assert "policy 0 of age 1; update 2 on this rollout" in lines[1]
    trained = read_jsonl(done.out / "log/trained.jsonl")
    assert {row["step"] for row in trained} == set(range(6)) and {row["rollout"] for row in trained} == {0, 1, 2}


def test_the_background_changes_no_byte(world, tmp_path):
    digests = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for background in ("off", "thread", "process"):
            runtime = RolloutRuntime(background=background)
            rollout = RolloutConfig(staleness=1, runtime=runtime)
            context = make_context(tmp_path / background, threads=1)
            grpo(CONFIG.model_copy(update={"rollout": rollout, "steps": 4}), world, context)
            digests[background] = content_digest(context.out)
    finally:
        torch.set_num_threads(threads)
    assert digests["off"] == digests["thread"] == digests["process"]


def test_ppo_trains_policy_and_value_network_and_survives_a_crash(world, tmp_path):
    config = CONFIG.model_copy(update={"algorithm": "ppo"})
    done = check_training_stage(grpo, config, world, tmp_path, 6)
    assert changed_weights(world["policy"].path, done.out)
    assert read_json(done.out / "value/config.json")["architectures"] == ["Qwen3ForSequenceClassification"]
    assert "score.weight" in load_file(done.out / "value/model.safetensors")
    rows = read_jsonl(done.out / "log/metrics.jsonl")
    assert all(0 <= row["value_loss"] < 10 and row["value_explained"] <= 1 for row in rows)
    # Unlike GRPO it is trained on every answer.
    assert len(read_jsonl(done.out / "log/trained.jsonl")) == 6 * 36
    assert "learning from every graded answer" in (done.out / "log/why.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"importance_correction": "token_mask"}, "nothing to correct"),
        ({"rollout": RolloutConfig(staleness=1, old_logprobs="trainer")}, "would be biased"),
        ({"rollout": RolloutConfig(runtime=RolloutRuntime(background="thread"))}, "nothing may be collected ahead"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_fix(world, tmp_path, changes, words):
    with pytest.raises(UserError, match=rf"{words}.*Fix: set "):
        grpo(CONFIG.model_copy(update=changes), world, make_context(tmp_path))


def test_prompts_that_hold_what_is_kept_for_testing_are_never_asked(world, tmp_path):
    rows = [row for row in read_jsonl(world["tasks"] / "train.jsonl") if row["task_set"] == "arithmetic"]
    held = {**rows[0], "id": "held", "part": "dev"}
    asked = {**rows[0], "id": "asked", "messages": [{"role": "user", "content": f"{held['messages'][-1]['content']}!"}]}
    write_jsonl(tmp_path / "tasks/train.jsonl", [asked, *rows[1:]])
    write_jsonl(tmp_path / "tasks/dev.jsonl", [held])
    write_json(tmp_path / "tasks/sets.json", read_json(world["tasks"] / "sets.json"))
    inputs = {**world, "tasks": make_artifact(tmp_path / "tasks")}
    config = CONFIG.model_copy(update={"tasks": ("arithmetic",)})
    found, shares = module.prompts(config, inputs)
    assert [task.id for task in found] == [row["id"] for row in rows[1:]] and shares == {"arithmetic": 1.0}
    write_jsonl(tmp_path / "only/train.jsonl", [asked])
    write_jsonl(tmp_path / "only/dev.jsonl", [held])
    write_json(tmp_path / "only/sets.json", read_json(world["tasks"] / "sets.json"))
    with pytest.raises(UserError, match="Every training prompt of arithmetic holds a task that is kept for testing"):
        module.prompts(config, {**world, "tasks": make_artifact(tmp_path / "only")})


def test_sets_tagged_reasoning_are_asked_unless_others_are_chosen(world):
    _, shares = module.prompts(GRPOConfig(), world)
    assert shares == {"arithmetic": 1.0, "word_problem": 1.0, "ordering": 1.0}
    _, shares = module.prompts(GRPOConfig(tasks={"tag:must_refuse": 0.5, "code": 0.5}), world)
    assert shares == {"safety": 0.5, "code": 0.5}


def test_the_best_weights_by_development_tasks_are_kept_after_a_crash_too(world, tmp_path):
    config = CONFIG.model_copy(update={"evaluate": DevelopmentConfig(every=2, n=3, tasks=("arithmetic",))})
    done = check_training_stage(grpo, config, world, tmp_path, 6)
    found = read_json(done.out / "development.json")
    assert [row["step"] for row in found["measured"]] == [2, 4, 6] and found["best"] in found["measured"]
    assert all(row["n"] == 3 for row in found["measured"])
    assert max(row["score"] for row in found["measured"]) == found["best"]["score"]


def test_settings_that_count_rows_are_refused():
    with pytest.raises(ValueError, match="batch_size counts rows"):
        GRPOConfig(batch_size=7)


def test_ppo_refuses_what_only_groups_have():
    with pytest.raises(ValueError, match="the value network is the baseline"):
        GRPOConfig(algorithm="ppo", dynamic_sampling=2)


def test_a_sampler_that_computes_something_else_stops_the_run(world, tmp_path, monkeypatch):
    plain = TorchEngine.generate

    def skewed(self, *arguments, **options):
        groups = plain(self, *arguments, **options)
        return [[replace(c, logprobs=[v - 0.8 for v in c.logprobs]) for c in group] for group in groups]

    monkeypatch.setattr(TorchEngine, "generate", skewed)
    context = make_context(tmp_path)
    with pytest.raises(UserError, match=r"sampler and trainer differ by .* nats per token at equal weights.*Fix: "):
        grpo(CONFIG, world, context)
    actions = [row["action"] for row in read_jsonl(context.out / "log/guards.jsonl")]
    assert actions[-1] == "stop" and len(actions) <= 3
