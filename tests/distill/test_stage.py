"""Quantization: int8 weights close to their source."""

import pytest
import torch

from loopline.base.errors import UserError
from loopline.distill.config import QuantizeConfig
from loopline.distill.stage import quantize
from loopline.inference.engine import TorchEngine
from loopline.store.artifact import content_digest
from loopline.tasks.task import load_tasks
from tests.support import make_artifact, make_context
from tests.support_stages import assert_checkpoint


def test_int8_weights_are_close_and_the_same_twice(world, tmp_path):
    inputs = {"checkpoint": world["policy"]}
    contexts = [make_context(tmp_path / name) for name in ("a", "b")]
    for context in contexts:
        quantize(QuantizeConfig(), inputs, context)
    out = contexts[0].out
    assert_checkpoint(out)
    assert content_digest(out) == content_digest(contexts[1].out)
    values = contexts[0].metrics.values
    assert values["bytes_after"] == (out / "model.safetensors").stat().st_size < 0.6 * values["bytes_before"]
    engines = [TorchEngine.from_checkpoint(path) for path in (world["policy"].path, out)]
    tasks = load_tasks(world["tasks"] / "train.jsonl", ["arithmetic"])
    tokens = [torch.tensor([engines[0].tokenizer.render(task.messages, add_generation_prompt=True)]) for task in tasks]
    with torch.no_grad():
        for row in tokens:
            ours, theirs = (engine.model.logits(engine.model(row)) for engine in engines)
            assert float((ours - theirs).std()) < 0.05 * float(ours.std())
            # What the policy is sure of survives the rounding.
            assert int(ours[0, -1].argmax()) == int(theirs[0, -1].argmax())


def test_a_directory_without_a_checkpoint_is_named_with_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"no file .*config\.json.*Fix: "):
        quantize(QuantizeConfig(), {"checkpoint": make_artifact(tmp_path / "empty")}, make_context(tmp_path / "c"))
