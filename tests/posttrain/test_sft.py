"""Cold-start fine-tuning: learns the written answers, repeats itself, survives a crash."""

import pytest

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling, TorchEngine
from loopline.posttrain.config import SFTConfig
from loopline.posttrain.stage import sft
from loopline.tasks.task import load_tasks
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, changed_weights, check_training_stage

SMALL = {"steps": 6, "examples_per_step": 8, "sequence_length": 224, "rows_per_batch": 2, "runtime": OFTEN}


def test_a_base_becomes_a_checkpoint_twice_and_after_a_crash(world, tmp_path):
    done = check_training_stage(sft, SFTConfig(**SMALL), world, tmp_path, 6)
    assert changed_weights(world["base"].path, done.out)
    assert done.metrics.values["examples"] == 60


def test_enough_of_it_makes_the_policy_answer_as_written(world):
    engine = TorchEngine.from_checkpoint(world["policy"].path)
    tasks = load_tasks(world["tasks"] / "train.jsonl", ["arithmetic", "ordering"])
    prompts = [engine.tokenizer.render(task.messages, add_generation_prompt=True) for task in tasks]
    answers = [engine.tokenizer.decode(c.token_ids) for (c,) in engine.generate(prompts, Sampling(8, temperature=0))]
    assert sum(a == f"{task.answer}<|end|>" for a, task in zip(answers, tasks, strict=True)) > 0.9 * len(tasks)


def test_rows_that_are_too_long_are_refused_before_the_first_step(world, tmp_path):
    context = make_context(tmp_path)
    with pytest.raises(UserError, match=r"examples of lookup are longer than a row of 16.*sequence_length to \d+"):
        sft(SFTConfig(sequence_length=16, shares={"lookup": 1.0}), world, context)
    assert not (context.out / "log").exists()


def test_task_sets_and_files_that_are_missing_are_named(world, tmp_path):
    with pytest.raises(UserError, match=r"no tasks of the task set 'poetry'.*Fix: "):
        sft(SFTConfig(shares={"poetry": 1.0}), world, make_context(tmp_path / "a"))
    empty = make_artifact(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no file .*train\.jsonl.*Fix: "):
        sft(SFTConfig(), {**world, "tasks": empty}, make_context(tmp_path / "b"))
    with pytest.raises(UserError, match=r"has no tokenizer\.json.*Fix: "):
        sft(SFTConfig(), {**world, "base": empty}, make_context(tmp_path / "c"))
