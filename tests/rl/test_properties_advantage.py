"""Advantages: nothing out of nothing, baselines and deviations against textbook arithmetic."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loopline.posttrain.config import GRPOConfig
from loopline.rl.advantage import batch_advantages, group_advantages
from loopline.rl.config import PRESETS, PolicyGradientConfig

rewards = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=10)
BASELINES = ["mean", "leave_one_out"]
SCALES = ["group", "batch", "none"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("value", [0.35, 1 / 3, 0.1, 1e-9, -7.7, 0.0])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 64])
def test_equal_rewards_have_no_advantage_not_even_a_residue(scale, baseline, value, count):
    groups = [[value] * count, [1.0, 0.0], [value, None], [None]]
    found = batch_advantages(groups, scale, baseline=baseline)
    assert found[0] == [0.0] * count
    assert found[2:] == [[0.0, None], [None]]
    assert any(found[1])


@pytest.mark.parametrize("baseline", BASELINES)
def test_neither_have_rewards_that_differ_by_rounding(baseline):
    """A leave-one-out deviation from mean squares makes thousands of such a difference."""
    assert group_advantages([0.35, 0.35 + 1e-9, 0.35 - 1e-9], baseline=baseline) == [0.0] * 3


@given(rewards)
def test_leave_one_out_compares_with_the_others(values):
    graded = [v for v in values if v is not None]
    found = group_advantages(values, "none", baseline="leave_one_out")
    if len(graded) < 2 or max(graded) - min(graded) <= 1e-6 * max(map(abs, graded)):
        assert not any(found)
        return
    for value, got in zip(values, found, strict=True):
        if value is not None:
            others = (sum(graded) - value) / (len(graded) - 1)
            assert got == pytest.approx(value - others, abs=1e-9)


@given(st.lists(rewards, min_size=1, max_size=5))
def test_the_batchs_deviation_is_of_all_raw_rewards(groups):
    graded = [v for values in groups for v in values if v is not None]
    found = batch_advantages(groups, "batch")
    plain = batch_advantages(groups, "none")
    if len(graded) < 2 or max(graded) - min(graded) <= 1e-6 * max(map(abs, graded)):
        assert found == plain
        return
    divisor = statistics.stdev(graded) + 1e-4
    for row, centred in zip(found, plain, strict=True):
        assert row == [None if v is None else pytest.approx(v / divisor, abs=1e-9) for v in centred]


@given(rewards)
def test_what_could_not_be_graded_moves_nobody(values):
    graded = [v for v in values if v is not None]
    found = [v for v in group_advantages(values) if v is not None]
    assert found == group_advantages(graded)
    assert group_advantages(values, baseline="none") == values


def test_batch_advantages_are_the_groups_own_where_the_batch_plays_no_part():
    groups = [[1.0, 0.0, 0.5], [None, 2.0, 1.0]]
    assert batch_advantages(groups) == [group_advantages(group) for group in groups]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("scale", SCALES)
def test_rewards_must_be_numbers(scale, value):
    with pytest.raises(ValueError, match="finite"):
        batch_advantages([[1.0, value]], scale)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_settings_that_hold_together(name):
    config = PolicyGradientConfig(preset=name, prompts_per_step=3)
    assert config.prompts_per_step == 3
    assert all(getattr(config, key) == value for key, value in PRESETS[name].items())
    changed = PolicyGradientConfig(preset=name, clip_high=7.5)
    assert changed.clip_high == 7.5
    assert all(getattr(changed, key) == value for key, value in PRESETS[name].items() if key != "clip_high")
    assert PolicyGradientConfig(**config.model_dump()) == config


def test_a_preset_yields_to_what_is_set_beside_it():
    config = GRPOConfig.model_validate({"preset": "dr_grpo", "normalizer": "token"})
    assert (config.scale_rewards, config.normalizer, config.drop_zero_signal) == ("none", "token", False)
    config = GRPOConfig.model_validate({"preset": "rloo", "kl_coefficient": 0.05})
    assert config.baseline == "leave_one_out" and config.kl_in == "reward"


def test_there_is_no_other_preset():
    with pytest.raises(ValidationError, match=r"preset(.|\n)*'dr_grpo'(.|\n)*'grop'"):
        GRPOConfig.model_validate({"preset": "grop"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dual_clip": 1.1}, "above 1 \\+ clip_high"),
        ({"dual_clip": 3.0, "surrogate": "reinforce"}, "no effect"),
        ({"surrogate": "cispo_cap"}, "cispo_from_one"),
        ({"ratio_level": "sequence"}, "normalizer to sequence"),
        ({"ratio_level": "sequence", "normalizer": "sequence", "surrogate": "reinforce"}, "no ratio"),
        ({"baseline": "none"}, "scale_rewards to none"),
        ({"updates_per_rollout": 40}, "prompts_per_step"),
    ],
)
def test_settings_that_contradict_each_other_name_the_fix(settings, words):
    with pytest.raises(ValidationError, match=words):
        PolicyGradientConfig(**settings)
