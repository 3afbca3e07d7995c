"""Pretraining on real shards: a checkpoint, the same bytes again, and a control that differs in the mixture alone."""

import json

import pytest
import torch

from loopline.base.errors import UserError
from loopline.base.files import write_json
from loopline.model.checkpoint import load_model
from loopline.pretrain.config import ContinueConfig, PretrainConfig
from loopline.pretrain.stage import continue_pretraining, pretrain
from loopline.training.batch import Batch
from loopline.training.objectives import NextToken
from loopline.training.shards import ShardSet
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, PLAN, changed_weights, check_training_stage


def heldout_loss(model, data):
    windows = torch.from_numpy(ShardSet(data.path).heldout_windows("synthetic/arithmetic", 64))
    with torch.no_grad():
        total, count, _ = NextToken().loss(model, Batch(windows))
    return float(total) / count


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_base_is_pretrained_as_planned(world, tmp_path, optimizer):
    config = PretrainConfig(optimizer=optimizer, runtime=OFTEN)
    done = check_training_stage(pretrain, config, world, tmp_path, PLAN["steps"])
    model = load_model(done.out)
    assert model.config.model_dump().items() >= PLAN["model"].items()
    assert done.metrics.values["parameters"] == model.config.parameters()
    assert heldout_loss(model, world["data"]) < heldout_loss(load_model(world["base"].path), world["data"]) - 0.2
    rows = [json.loads(line) for line in (done.out / "log/metrics.jsonl").read_text().splitlines()]
    # Rows carry one token more than they predict.
    assert all(row["tokens"] == 4 * 65 for row in rows)
    assert (done.out / "tokenizer.json").read_bytes() == (world["data"] / "tokenizer/tokenizer.json").read_bytes()


def test_continued_pretraining_follows_the_mixture_and_the_control_the_old_one(world, tmp_path):
    runs = {}
    for name, side in (("pretrain_next", "after"), ("pretrain_control", "before")):
        config = ContinueConfig(tokens=8 * 256, mixture=side, runtime=OFTEN)
        runs[name] = check_training_stage(continue_pretraining, config, world, tmp_path / name, 8, name=name)
        assert changed_weights(world["base"].path, runs[name].out)
    assert changed_weights(runs["pretrain_next"].out, runs["pretrain_control"].out)
    # The new mixture is arithmetic alone, so that is what it learns faster.
    losses = {name: heldout_loss(load_model(run.out), world["data"]) for name, run in runs.items()}
    assert losses["pretrain_next"] < losses["pretrain_control"]
    assert runs["pretrain_next"].metrics.values["tokens"] == 8 * 256


def test_with_one_mixture_twice_the_control_is_the_same_run(world, tmp_path):
    mixture = {"before": {"synthetic/code": 1.0}, "after": {"synthetic/code": 1.0}}
    write_json(tmp_path / "mixture/mixture.json", mixture)
    inputs = {**world, "mixture": make_artifact(tmp_path / "mixture")}
    contexts = [make_context(tmp_path / name, seed=number, stage=name) for number, name in enumerate(("x", "control"))]
    for context in contexts:
        continue_pretraining(ContinueConfig(tokens=512), inputs, context)
    assert not changed_weights(contexts[0].out, contexts[1].out)


def test_a_plan_or_base_of_another_vocabulary_is_refused(world, tmp_path):
    write_json(tmp_path / "plan/plan.json", {**PLAN, "model": {**PLAN["model"], "vocab_size": 64}})
    inputs = {**world, "plan": make_artifact(tmp_path / "plan")}
    with pytest.raises(UserError, match=r"written with 400 tokens, but the model knows 64.*Fix: use the plan"):
        pretrain(PretrainConfig(), inputs, make_context(tmp_path / "a"))


@pytest.mark.parametrize(
    ("role", "file", "words"),
    [
        ("plan", "plan.json", r"no file .*plan\.json"),
        ("data", "manifest.json", r"no file .*manifest\.json"),
        ("mixture", "mixture.json", r"no file .*mixture\.json"),
        ("base", "config.json", r"no file .*config\.json"),
    ],
)
def test_missing_files_are_named_with_the_fix(world, tmp_path, role, file, words):
    inputs = {**world, role: make_artifact(tmp_path / "empty")}
    assert not (inputs[role] / file).exists()
    stage, config = (
        (continue_pretraining, ContinueConfig()) if role in ("mixture", "base") else (pretrain, PretrainConfig())
    )
    with pytest.raises(UserError, match=words + ".*Fix: "):
        stage(config, inputs, make_context(tmp_path / "c"))
    assert not (tmp_path / "c/out/model.safetensors").exists()


def test_a_source_that_the_data_lacks_is_refused(world, tmp_path):
    write_json(tmp_path / "mixture/mixture.json", {"before": {"web": 1.0}, "after": {"web": 1.0}})
    inputs = {**world, "mixture": make_artifact(tmp_path / "mixture")}
    with pytest.raises(UserError, match="does not have: web"):
        continue_pretraining(ContinueConfig(), inputs, make_context(tmp_path / "c"))


def test_the_students_base_is_pretrained(world, tmp_path):
    done = check_training_stage(pretrain, PretrainConfig(shape="student", steps=6, runtime=OFTEN), world, tmp_path, 6)
    model = load_model(done.out)
    assert model.config.model_dump().items() >= PLAN["student"].items()
    windows = torch.from_numpy(ShardSet(world["data"].path).batch(0, 4, 64))
    total, count, _ = NextToken().loss(model, Batch(windows))
    # Six steps do away with the ids that no text has.
    assert total.item() / count < 5.8
    write_json(tmp_path / "plan/plan.json", {**PLAN, "student": {**PLAN["student"], "vocab_size": 99}})
    with pytest.raises(UserError, match="written with 400 tokens, but the model knows 99"):
        pretrain(
            PretrainConfig(shape="student"), {**world, "plan": make_artifact(tmp_path / "plan")}, make_context(tmp_path)
        )
