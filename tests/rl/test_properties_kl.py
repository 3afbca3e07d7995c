"""KL estimators against the exact divergence on a vocabulary of five words: value and gradient."""

import pytest
import torch

from loopline.rl.config import PolicyGradientConfig
from loopline.rl.losses import kl_penalty, kl_value

LOGITS = torch.tensor([0.3, -0.8, 1.1, 0.0, -0.4], dtype=torch.float64)
REFERENCE = torch.tensor([-0.2, 0.5, 0.7, 0.1, -1.0], dtype=torch.float64).log_softmax(-1)
OLD = torch.tensor([0.6, -0.5, 0.4, 0.3, -0.9], dtype=torch.float64).log_softmax(-1)


def exact(reverse=False):
    """KL(policy || reference), or the other way round, and its gradient by the logits."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(-1)
    p, d = (REFERENCE, REFERENCE - policy) if reverse else (policy, policy - REFERENCE)
    value = (p.exp() * d).sum()
    value.backward()
    return value.item(), logits.grad


def expected(sampling, estimator, gradient):
    """Value and gradient of the penalty, in expectation over words drawn from `sampling`, summed exactly."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(-1)
    config = PolicyGradientConfig(kl_estimator=estimator, kl_gradient=gradient)
    ratio = (policy - sampling).exp()
    penalty = kl_penalty(policy, REFERENCE, ratio, config)
    (sampling.exp() * penalty).sum().backward()
    return float((sampling.exp() * penalty).sum().detach()), logits.grad


POLICY = LOGITS.log_softmax(-1)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_right_mean(estimator):
    mean = (POLICY.exp() * kl_value(POLICY - REFERENCE, estimator)).sum()
    assert float(mean) == pytest.approx(exact()[0])


def test_k3_is_never_negative_and_varies_less_than_k1():
    p, d = POLICY.exp(), POLICY - REFERENCE
    k1, k3 = kl_value(d, "k1"), kl_value(d, "k3")
    assert bool((k3 >= 0).all())

    def variance(values):
        return float((p * values**2).sum() - (p * values).sum() ** 2)

    assert variance(k3) < variance(k1)


def test_k2_is_biased():
    mean = (POLICY.exp() * kl_value(POLICY - REFERENCE, "k2")).sum()
    assert abs(float(mean) - exact()[0]) > 1e-3


@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [
        ("k2", "estimator"),
        ("k1", "straight_through"),
        ("k3", "straight_through"),
        ("k1", "ratio"),
        ("k3", "ratio"),
    ],
)
def test_gradients_that_are_right_on_policy(estimator, gradient):
    found = expected(POLICY, estimator, gradient)[1]
    torch.testing.assert_close(found, exact()[1])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_times_the_ratio_value_and_gradient_are_right_off_policy_too(estimator):
    value, gradient = expected(OLD, estimator, "ratio")
    assert value == pytest.approx(exact()[0])
    torch.testing.assert_close(gradient, exact()[1])


def test_k1_as_it_stands_has_no_gradient_in_expectation():
    torch.testing.assert_close(expected(POLICY, "k1", "estimator")[1], torch.zeros(5, dtype=torch.float64))


def test_k3_as_it_stands_has_the_gradient_of_the_reversed_divergence():
    found = expected(POLICY, "k3", "estimator")[1]
    torch.testing.assert_close(found, exact(reverse=True)[1])
    assert float((found - exact()[1]).abs().max()) > 1e-2


@pytest.mark.parametrize("gradient", ["ratio", "straight_through", "estimator"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_on_policy_the_gradient_form_leaves_the_value_alone(estimator, gradient):
    plain = float((POLICY.exp() * kl_value(POLICY - REFERENCE, estimator)).sum())
    assert expected(POLICY, estimator, gradient)[0] == pytest.approx(plain)


def test_k3_keeps_its_digits_where_policies_are_close():
    """exp(-d) - 1 + d in float32 is all rounding at d = 1e-4; d^2 / 2 is the answer there."""
    d = torch.tensor([1e-4], dtype=torch.float32)
    assert float(kl_value(d, "k3")) == pytest.approx(5e-9, rel=2e-3)
