"""Properties of the policy losses: on-policy identity, tables of clipping, masks and denominators."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.rl.config import PRESETS, PolicyGradientConfig
from loopline.rl.losses import (
    PolicyInput,
    clipped_surrogate,
    gae,
    importance_weights,
    over_samples,
    policy_loss,
    value_loss,
)
from loopline.rl.objective import GRPO
from loopline.training.batch import Example, build_batch
from loopline.training.objectives import score_tokens
from tests.support_model import tiny_model


def inputs_for(logprobs, old, advantages, owners=None, **extra):
    count = len(logprobs)
    owners = torch.zeros(count, dtype=torch.long) if owners is None else owners
    return PolicyInput(logprobs, old, advantages, torch.ones(count), owners, **extra)


def slope_at(ratio, advantage, config):
    """d loss / d log p of one token whose ratio is `ratio`."""
    logprob = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0], dtype=torch.float64) - math.log(ratio)
    result = policy_loss(inputs_for(logprob, old, torch.tensor([advantage], dtype=torch.float64)), config)
    result.losses_M.sum().backward()
    return float(logprob.grad)


def soft_slope(ratio, advantage, heat):
    gate = 1 / (1 + math.exp(-heat * (ratio - 1)))
    return -advantage * 4 * gate * (1 - gate) * ratio


RATIOS = (0.5, 0.9, 1.0, 1.1, 1.5, 4.0)
CLIP = {"clip_low": 0.2, "clip_high": 0.3}


@pytest.mark.parametrize("advantage", [1.0, -2.0])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_table_of_the_clip(ratio, advantage):
    """Zero where PPO says so and nowhere else; dual clip only takes the tail of the negative side."""
    passes = ratio <= 1.3 if advantage > 0 else ratio >= 0.8
    expected = -advantage * ratio if passes else 0.0
    assert slope_at(ratio, advantage, PolicyGradientConfig(**CLIP)) == pytest.approx(expected)
    dual = PolicyGradientConfig(**CLIP, dual_clip=3.0)
    expected = 0.0 if advantage < 0 and ratio > 3.0 else expected
    assert slope_at(ratio, advantage, dual) == pytest.approx(expected)


@pytest.mark.parametrize("advantage", [1.0, -2.0])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(
    ("surrogate", "clip_high", "weight"),
    [
        ("cispo_cap", 1.2, lambda r: min(r, 1.2)),
        ("cispo_clip", 0.3, lambda r: min(max(r, 0.8), 1.3)),
        ("cispo_from_one", 0.3, lambda r: min(r, 1.3)),
        ("reinforce", 0.3, lambda r: 1.0),
    ],
)
def test_the_table_of_cispo_whose_three_meanings_differ(ratio, advantage, surrogate, clip_high, weight):
    """The gradient is never zero, and its weight is what the name says."""
    config = PolicyGradientConfig(clip_low=0.2, clip_high=clip_high, surrogate=surrogate)
    found = slope_at(ratio, advantage, config)
    assert found == pytest.approx(-advantage * weight(ratio))
    assert found != 0


@pytest.mark.parametrize("advantage", [1.0, -2.0])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_table_of_the_soft_gate(ratio, advantage):
    config = PolicyGradientConfig(surrogate="soft_gate", gate_positive=1.0, gate_negative=1.5)
    expected = soft_slope(ratio, advantage, 1.0 if advantage > 0 else 1.5)
    assert slope_at(ratio, advantage, config) == pytest.approx(expected)
    if ratio == 1.0:
        assert expected == pytest.approx(-advantage)


@settings(max_examples=30)
@given(st.floats(0.05, 8), st.floats(-3, 3), st.floats(0.05, 0.9), st.floats(0.05, 2), st.floats(3.5, 9))
def test_losses_are_the_papers_minima_and_maxima(ratio, advantage, low, high, dual):
    logprob, old = torch.tensor([-1.0]), torch.tensor([-1.0 - math.log(ratio)])
    plain = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    found = clipped_surrogate(logprob, old, torch.tensor([advantage]), low, high)
    assert float(found.losses_M) == pytest.approx(-plain, rel=1e-4, abs=1e-5)
    config = PolicyGradientConfig(clip_low=low, clip_high=high, dual_clip=dual)
    bounded = max(plain, dual * advantage) if advantage < 0 else plain
    result = policy_loss(inputs_for(logprob, old, torch.tensor([advantage])), config)
    assert float(result.losses_M) == pytest.approx(-bounded, rel=1e-4, abs=1e-5)


def packed(model, config, seed=0, **extras):
    """Two rows of unequal samples whose old log-probs are the model's own."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number, length in enumerate((3, 7, 5, 2)):
        tokens = torch.randint(10, 300, (2 + length,), generator=generator).tolist()
        plain = Example(tokens, [0.0, 0.0] + [1.0] * length)
        with torch.no_grad():
            logprobs = score_tokens(model, build_batch([[plain]]), config.temperature).logprobs_M.tolist()
        advantage = (0.7, -1.2, 0.4, -0.1)[number]
        weight = 1 / length if config.normalizer == "sequence" else 1.0
        normalizer = {"sequence": 1.0, "token": float(length), "constant": 8.0}[config.normalizer]
        values = {name: [0.0, 0.0, *(p + shift for p in logprobs)] for name, shift in extras.items()}
        examples.append(
            Example(
                tokens,
                [0.0, 0.0] + [weight] * length,
                {"advantages": [0.0, 0.0] + [advantage] * length, "old_logprobs": [0.0, 0.0, *logprobs], **values},
                {"normalizer": normalizer},
            )
        )
    return build_batch([examples[:2], examples[2:]])


def gradient_of(model, total):
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_on_policy_every_algorithm_is_reinforce_with_its_own_weights(name):
    """Ratio 1 everywhere: nothing is clipped, and the gradient is -A grad log p, summed per sample where it is RLOO."""
    config = PolicyGradientConfig(preset=name, kl_coefficient=0.0)
    model = tiny_model(40)
    batch = packed(model, config)
    total, normalizer, metrics = GRPO.from_config(config).loss(model, batch)
    found = gradient_of(model, total / normalizer)
    scores = score_tokens(model, batch)
    advantages = batch.extras["advantages"].reshape(-1)[scores.index_M]
    weights = scores.weights_M
    if config.ratio_level == "sequence_product":
        # The whole sample's log-prob counts, not its mean per token.
        owners = batch.sequences_BT.reshape(-1)[scores.index_M]
        weights = weights * torch.bincount(owners)[owners]
    expected = gradient_of(model, -(advantages * weights * scores.logprobs_M).sum() / normalizer)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert metrics["clip_low"] == metrics["clip_high"] == 0
    assert metrics["policy_kl"] == pytest.approx(0, abs=1e-6)


def test_at_the_second_step_the_ratio_has_moved():
    config = PolicyGradientConfig()
    model = tiny_model(41)
    batch = packed(model, config)
    total, normalizer, first = GRPO.from_config(config).loss(model, batch)
    (total / normalizer).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=0.3)
    _, _, second = GRPO.from_config(config).loss(model, batch)
    assert second["policy_kl"] > 1e-5 > abs(first["policy_kl"])
    assert second["loss"] < first["loss"]


def test_a_ratio_of_samples_is_the_geometric_mean_or_the_product():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.2, -1.7, -0.9], dtype=torch.float64)
    owners = torch.tensor([0, 0, 1])
    inputs = inputs_for(logprobs, old, torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64), owners)
    wide = {"clip_low": 0.9, "clip_high": 9.0, "normalizer": "sequence"}
    mean = policy_loss(inputs, PolicyGradientConfig(ratio_level="sequence", **wide))
    assert mean.ratio_M.tolist() == pytest.approx([math.exp((0.2 - 0.3) / 2)] * 2 + [math.exp(0.4)])
    product = policy_loss(inputs, PolicyGradientConfig(ratio_level="sequence_product", **wide))
    assert product.ratio_M.tolist() == pytest.approx([math.exp(0.2 - 0.3)] * 2 + [math.exp(0.4)])
    (mean.losses_M * torch.tensor([0.5, 0.5, 1.0])).sum().backward()
    # d/dlogp_t of s A with s = exp(mean of log-ratios) is s A / length (GSPO, eq. 7).
    s = math.exp(-0.05)
    assert logprobs.grad.tolist() == pytest.approx([-s / 2, -s / 2, math.exp(0.4)])


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_weights_are_cut_or_dropped_and_carry_no_gradient(mode):
    config = PolicyGradientConfig(importance_correction=mode, importance_cap=1.5, importance_floor=0.6)
    logprobs = torch.zeros(5, requires_grad=True)
    differences = [0.1, 0.3, 1.0, -1.0, 0.2]
    owners = torch.tensor([0, 0, 1, 2, 2])
    inputs = inputs_for(logprobs, logprobs * 1.0, torch.ones(5), owners, sampler_logprobs_M=-torch.tensor(differences))
    raw = differences if mode.startswith("token") else [0.4, 0.4, 1.0, -0.8, -0.8]
    ratios = [math.exp(d) for d in raw]
    if mode.endswith("truncate"):
        expected = [min(max(r, 0.6), 1.5) for r in ratios]
    else:
        expected = [r if 0.6 <= r <= 1.5 else 0.0 for r in ratios]
    weights = importance_weights(inputs, config)
    assert weights.tolist() == pytest.approx(expected)
    assert not weights.requires_grad


def test_an_infinite_weight_is_dropped_without_nan():
    config = PolicyGradientConfig(importance_correction="token_mask")
    logprobs = torch.zeros(2, requires_grad=True)
    inputs = inputs_for(logprobs, torch.zeros(2), torch.ones(2), sampler_logprobs_M=torch.tensor([-1000.0, 0.0]))
    policy_loss(inputs, config).losses_M.sum().backward()
    assert logprobs.grad.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
def test_what_a_mask_rejects_still_counts_in_the_denominator(normalizer):
    """Rejecting half of the tokens halves the gradient's mass; dividing by the kept ones would undo it (N / N_kept)."""
    config = PolicyGradientConfig(normalizer=normalizer, importance_correction="token_mask")
    model = tiny_model(42)
    batch = packed(model, config, sampler_logprobs=0.0)
    whole, normalizer_before, _ = GRPO.from_config(config).loss(model, batch)
    scores = score_tokens(model, batch)
    rejected = scores.index_M[::2]
    sampler = batch.extras["sampler_logprobs"].reshape(-1)
    sampler[rejected] -= 5.0
    masked, normalizer_after, metrics = GRPO.from_config(config).loss(model, batch)
    assert normalizer_after == normalizer_before
    kept = torch.ones(len(scores.index_M))
    kept[::2] = 0
    advantages = batch.extras["advantages"].reshape(-1)[scores.index_M]
    expected = -(advantages * scores.weights_M * kept).sum()
    assert float(masked.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert metrics["importance_dropped"] == pytest.approx(1 - float(kept.mean()))
    assert float(whole.detach()) != pytest.approx(float(masked.detach()))


def test_the_kl_is_not_weighted_by_the_importance():
    config = PolicyGradientConfig(
        importance_correction="token_truncate", importance_cap=1.0, kl_coefficient=2.0, kl_gradient="estimator"
    )
    logprobs, zeros = torch.zeros(1), torch.zeros(1)
    inputs = inputs_for(
        logprobs,
        zeros,
        zeros,
        sampler_logprobs_M=torch.tensor([3.0]),
        reference_logprobs_M=torch.tensor([-1.0]),
    )
    result = policy_loss(inputs, config)
    assert float(result.losses_M) == pytest.approx(2.0 * (math.exp(-1) - 1 + 1))
    assert result.metrics["reference_kl"] == pytest.approx(math.exp(-1))
    assert result.metrics["importance_mean"] == pytest.approx(math.exp(-3))


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"kl_coefficient": 0.1}, "reference"), ({"importance_correction": "token_mask"}, "sampler")],
)
def test_a_loss_without_its_log_probs_is_refused(changes, missing):
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match=missing):
        policy_loss(inputs_for(zeros, zeros, zeros), PolicyGradientConfig(**changes))


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0.5, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_gae_is_the_discounted_sum_of_temporal_differences(samples, discount, trace, bootstrap):
    last = [0.5 * (n + 1) if bootstrap else 0.0 for n in range(len(samples))]
    expected = []
    for rows, final in zip(samples, last, strict=True):
        values = [v for _, v in rows] + [final]
        deltas = [r + discount * values[t + 1] - values[t] for t, (r, _) in enumerate(rows)]
        expected += [
            math.fsum((discount * trace) ** k * deltas[t + k] for k in range(len(rows) - t)) for t in range(len(rows))
        ]
    flat = [pair for rows in samples for pair in rows]
    rewards, values = (torch.tensor([pair[i] for pair in flat], dtype=torch.float64) for i in (0, 1))
    owners = torch.tensor([n for n, rows in enumerate(samples) for _ in rows])
    final = torch.tensor(last, dtype=torch.float64) if bootstrap else None
    advantages, returns = gae(rewards, values, owners, discount, trace, final)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values.tolist(), strict=True)], abs=1e-9)


def test_with_full_traces_the_return_is_the_sum_of_rewards():
    rewards, owners = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.5]), torch.tensor([0, 0, 0, 1, 1])
    _, returns = gae(rewards, torch.randn(5), owners, 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5]))


@pytest.mark.parametrize(("value", "flows"), [(0.0, True), (0.15, True), (0.5, False), (-0.5, True), (1.5, True)])
def test_the_table_of_the_value_clip(value, flows):
    """Old value 0, return 1, clip 0.2: a value that moved past the clip towards the return gets no gradient."""
    values = torch.tensor([value], requires_grad=True)
    value_loss(values, torch.zeros(1), torch.ones(1), 0.2).sum().backward()
    expected = value - 1 if flows and abs(value - 1) >= abs(max(min(value, 0.2), -0.2) - 1) else 0.0
    if value == 1.5:
        expected = 0.0
    assert float(values.grad) == pytest.approx(expected)
    unclipped = torch.tensor([value], requires_grad=True)
    value_loss(unclipped, torch.zeros(1), torch.ones(1)).sum().backward()
    assert float(unclipped.grad) == pytest.approx(value - 1)


def test_sums_over_samples_reach_every_token():
    values, owners = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1])
    assert over_samples(values, owners, mean=False).tolist() == [1.0, 6.0, 6.0]
    assert over_samples(values, owners, mean=True).tolist() == [1.0, 3.0, 3.0]
    assert len(over_samples(values[:0], owners[:0], mean=True)) == 0
