"""Which parameters decay, which go to Muon, and that frozen ones go nowhere."""

import pytest
import torch
import transformers

from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.model.heads import ScoreModel
from loopline.training.config import OptimizerConfig, ScheduleConfig
from loopline.training.optimizer import build_optimizers, schedule_factor, set_learning_rate
from tests.model.families import EXPERTS, SIZES
from tests.support_model import tiny_model


def groups_of(model, kind):
    """{parameter's name: (optimizer, weight decay)}."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for optimizer in build_optimizers(model, OptimizerConfig(kind=kind, weight_decay=0.1)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[id(parameter)] not in found
                found[names[id(parameter)]] = (type(optimizer).__name__, group["weight_decay"])
    return found


def test_experts_decay_as_matrices_and_biases_and_norms_do_not():
    raw = transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, attention_bias=True).to_dict()
    model = Decoder(ModelConfig.from_raw(raw)).initialize(torch.Generator().manual_seed(0))
    for kind in ("adamw", "muon"):
        found = groups_of(model, kind)
        assert set(found) == {name for name, _ in model.named_parameters()}
        for name, (_, decay) in found.items():
            assert decay == (0.0 if name.endswith("bias") or "norm" in name else 0.1), name
        assert found["blocks.0.feed_forward.experts_down"][0] == "AdamW"
        assert found["blocks.0.attention.qkv.weight"][0] == ("Muon" if kind == "muon" else "AdamW")


def test_the_matrices_under_a_scoring_layer_are_those_of_the_decoder():
    plain, scored = groups_of(tiny_model(), "muon"), groups_of(ScoreModel(tiny_model()), "muon")
    assert {name.removeprefix("decoder."): where for name, where in scored.items()} == {
        **plain,
        "score.weight": ("AdamW", 0.1),
    }


def test_frozen_parameters_are_left_out():
    model = tiny_model()
    model.embedding.weight.requires_grad_(False)
    assert set(groups_of(model, "adamw")) == {name for name, p in model.named_parameters() if p.requires_grad}


def factors(steps, **schedule):
    return [schedule_factor(step, steps, ScheduleConfig(**schedule)) for step in range(steps)]


def test_the_learning_rate_at_every_step():
    # Ten steps: two rise, four stay, the last four fall; the first step of the decay is the first below the peak.
    rising, flat = [0.5, 1.0], [1.0] * 4
    assert factors(10, warmup=0.2, decay=0.4, final=0.0) == pytest.approx([*rising, *flat, 1.0, 0.75, 0.5, 0.25])
    assert factors(10, warmup=0.2, decay=0.4, final=0.2) == pytest.approx([*rising, *flat, 1.0, 0.8, 0.6, 0.4])


@pytest.mark.parametrize(("decay", "first"), [(0.1, 91), (0.4, 61), (0.5, 51)])
def test_the_decay_starts_where_its_share_of_the_steps_begins(decay, first):
    found = factors(100, warmup=0.0, decay=decay, final=0.0)
    assert [step for step, factor in enumerate(found) if factor < 1][0] == first
    assert found[-1] == pytest.approx(1 / round(100 * decay))


def test_the_ends_of_the_schedule():
    assert factors(5, warmup=0.0, decay=0.0) == [1.0] * 5
    assert factors(4, warmup=1.0, decay=0.0) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors(4, warmup=0.0, decay=1.0, final=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    # The default: 3% up, then 90% down to a tenth.
    found = factors(100)
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and found[10] == 1.0
    assert found[11] == pytest.approx(0.99) and found[99] == pytest.approx(0.11)


def test_every_group_follows_the_schedule_from_its_own_peak():
    optimizers = build_optimizers(
        tiny_model(), OptimizerConfig(kind="muon", learning_rate=0.004, matrix_learning_rate=0.03)
    )
    for factor in (0.25, 1.0, 0.5):
        set_learning_rate(optimizers, factor)
        rates = {type(optimizer).__name__: {g["lr"] for g in optimizer.param_groups} for optimizer in optimizers}
        assert rates == {"AdamW": {0.004 * factor}, "Muon": {0.03 * factor}}
