"""The clipped objective: table of gradients, on-policy identity, normalizers."""

import pytest
import torch

from loopline.rl.objective import GRPO, clipped_surrogate
from loopline.training.batch import Example, build_batch
from loopline.training.objectives import score_tokens
from tests.support_model import tiny_model


@pytest.mark.parametrize(
    ("advantage", "ratio", "flows"),
    [
        (1.0, 0.5, True),
        (1.0, 1.0, True),
        (1.0, 1.5, False),
        (-1.0, 0.5, False),
        (-1.0, 1.0, True),
        (-1.0, 1.5, True),
    ],
)
def test_where_the_gradient_flows(advantage, ratio, flows):
    logprob = torch.tensor([-1.0], requires_grad=True)
    old = torch.tensor([-1.0]) - torch.log(torch.tensor([ratio]))
    clipped_surrogate(logprob, old, torch.tensor([advantage]), 0.2, 0.2).losses_M.sum().backward()
    expected = -advantage * ratio if flows else 0.0
    assert float(logprob.grad) == pytest.approx(expected, abs=1e-6)


def on_policy_batch(model, temperature):
    tokens, weights = [20, 30, 40, 50, 60], [0.0, 0.0, 1.0, 1.0, 1.0]
    plain = build_batch([[Example(tokens, weights)]])
    with torch.no_grad():
        logprobs = score_tokens(model, plain, temperature).logprobs_M.tolist()
    example = Example(
        tokens,
        weights,
        {"advantages": [0, 0, 0.7, 0.7, 0.7], "old_logprobs": [0, 0, *logprobs]},
        {"normalizer": 3.0},
    )
    return build_batch([[example]])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_on_policy_the_gradient_is_reinforce(temperature):
    model = tiny_model(0)
    batch = on_policy_batch(model, temperature)
    total, normalizer, metrics = GRPO(0.2, 0.2, temperature).loss(model, batch)
    (total / normalizer).backward()
    ours = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    model.zero_grad()
    (-0.7 * score_tokens(model, batch, temperature).logprobs_M.mean()).backward()
    theirs = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert metrics["clip_low"] == metrics["clip_high"] == 0
    assert metrics["mismatch_kl"] == pytest.approx(0, abs=1e-6)


def test_after_a_large_step_the_ratio_moves_and_clips():
    model = tiny_model(0)
    batch = on_policy_batch(model, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    _, _, metrics = GRPO(0.2, 0.2, 1.0).loss(model, batch)
    assert metrics["mismatch_kl"] > 1e-3
