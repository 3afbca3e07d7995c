"""Policy losses as pure functions of log-probs, advantages and masks.

    result = policy_loss(PolicyInput(logprobs_M, old_logprobs_M, advantages_M, weights_M, owners_M), config)
    total = (result.losses_M * weights_M).sum()

M are the tokens the policy chose in a batch; the caller's weights and normalizer make the sum the mean that was asked
for, so nothing here divides by a count of its own: what a mask takes out of the numerator stays in the denominator.
Every form has its paper beside it and is tested against it. Not covered: where the numbers come from (see
`rl.objective`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from loopline.rl.config import PolicyGradientConfig


@dataclass(frozen=True)
class PolicyInput:
    """What policy losses see of M tokens."""

    logprobs_M: Tensor
    """Log-probs under the policy, with gradient."""
    old_logprobs_M: Tensor
    """Log-probs that the ratio is taken against."""
    advantages_M: Tensor
    """Advantage of the sample each token belongs to, or its own."""
    weights_M: Tensor
    """Weight of each token in the sum."""
    owners_M: Tensor
    """Number of the sample each token belongs to, from 0."""
    sampler_logprobs_M: Tensor | None = None
    """Log-probs the sampler reported, where they are not `old_logprobs_M`."""
    reference_logprobs_M: Tensor | None = None
    """Log-probs under the reference policy."""
    entropy_M: Tensor | None = None
    """Entropy at each token."""


@dataclass(frozen=True)
class PolicyLoss:
    """Losses per token and what to watch about them."""

    losses_M: Tensor
    ratio_M: Tensor
    """Ratio to the old policy, without gradient."""
    clipped_low: Tensor
    """Where the clip took the gradient at its lower bound."""
    clipped_high: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    """Means over the tokens."""


@dataclass(frozen=True)
class TokenLoss:
    """The surrogate per token, and where it was clipped."""

    losses_M: Tensor
    ratio_M: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def policy_loss(inputs: PolicyInput, config: PolicyGradientConfig) -> PolicyLoss:
    """The surrogate, importance-corrected, plus the KL penalty, in the form that `config` names.

    Raises `ValueError` when the config asks for log-probs that `inputs` lacks.
    """
    ratio = policy_ratio(inputs, config.ratio_level)
    token = surrogate(inputs.logprobs_M, ratio, inputs.advantages_M, config)
    losses = token.losses_M
    metrics: dict[str, float] = {}
    if config.importance_correction != "none":
        if inputs.sampler_logprobs_M is None:
            raise ValueError("importance_correction needs the sampler's log-probs beside the trainer's old ones")
        weight = importance_weights(inputs, config)
        losses = losses * weight
        metrics["importance_mean"] = float(weight.mean())
        metrics["importance_dropped"] = float((weight == 0).float().mean())
    if inputs.reference_logprobs_M is not None:
        difference = inputs.logprobs_M.detach() - inputs.reference_logprobs_M
        metrics["reference_kl"] = float(kl_value(difference, "k3").mean())
    if config.kl_coefficient and config.kl_in == "loss":
        if inputs.reference_logprobs_M is None:
            raise ValueError("kl_coefficient in the loss needs the reference policy's log-probs")
        penalty = kl_penalty(inputs.logprobs_M, inputs.reference_logprobs_M, ratio, config)
        losses = losses + config.kl_coefficient * penalty
    return PolicyLoss(losses, token.ratio_M, token.clipped_low, token.clipped_high, metrics)


def policy_ratio(inputs: PolicyInput, level: Literal["token", "sequence", "sequence_product"]) -> Tensor:
    """pi / pi_old at each token (M,).

    "sequence" is the geometric mean over the sample's tokens (GSPO, arXiv:2507.18071, eq. 7), "sequence_product" the
    ratio of the whole sample; both are the same at every token of it, and their gradient reaches all of them.
    """
    difference = inputs.logprobs_M - inputs.old_logprobs_M
    if level == "token":
        return difference.exp()
    return over_samples(difference, inputs.owners_M, mean=level == "sequence").exp()


def over_samples(values_M: Tensor, owners_M: Tensor, mean: bool) -> Tensor:
    """Each token's sample's sum of `values_M`, or their mean, (M,)."""
    if not len(owners_M):
        return values_M
    count = int(owners_M.max()) + 1
    sums = values_M.new_zeros(count).index_add(0, owners_M, values_M)
    if mean:
        sums = sums / torch.bincount(owners_M, minlength=count).clamp(min=1)
    return sums[owners_M]


def clipped_surrogate(
    logprobs_M: Tensor, old_logprobs_M: Tensor, advantages_M: Tensor, clip_low: float, clip_high: float
) -> TokenLoss:
    """PPO's clipped surrogate per token (Schulman et al. 2017, arXiv:1707.06347, eq. 7), as a loss."""
    return _clip((logprobs_M - old_logprobs_M).exp(), advantages_M, clip_low, clip_high, None)


def surrogate(logprobs_M: Tensor, ratio_M: Tensor, advantages_M: Tensor, config: PolicyGradientConfig) -> TokenLoss:
    """The surrogate that `config.surrogate` names, as a loss per token."""
    low, high = config.clip_low, config.clip_high
    if config.surrogate == "clip":
        return _clip(ratio_M, advantages_M, low, high, config.dual_clip)
    inside = torch.zeros_like(ratio_M, dtype=torch.bool)
    ratio = ratio_M.detach()
    if config.surrogate == "reinforce":
        return TokenLoss(-advantages_M * logprobs_M, ratio, inside, inside)
    if config.surrogate == "soft_gate":
        # SAPO: the gate's slope at ratio 1 is 1, so the first update is REINFORCE; it falls off to both sides.
        heat = torch.where(advantages_M > 0, config.gate_positive, config.gate_negative)
        gate = torch.sigmoid(heat * (ratio_M - 1)) * 4 / heat
        return TokenLoss(-gate * advantages_M, ratio, inside, inside)
    # CISPO, arXiv:2506.13585, eq. 4 and 5: the clipped ratio weighs the gradient of log p and has none itself.
    bounds = {"cispo_cap": (None, high), "cispo_clip": (1 - low, 1 + high), "cispo_from_one": (None, 1 + high)}
    below, above = bounds[config.surrogate]
    losses = -ratio.clamp(min=below, max=above) * advantages_M * logprobs_M
    return TokenLoss(losses, ratio, inside if below is None else ratio < below, ratio > above)


def _clip(ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None) -> TokenLoss:
    """min(r A, clip(r) A); with `dual`, no less than dual A where A < 0 (arXiv:1912.09729)."""
    clipped = ratio.clamp(1 - low, 1 + high)
    gains = torch.minimum(ratio * advantages, clipped * advantages)
    is_low = (ratio < 1 - low) & (advantages < 0)
    is_high = (ratio > 1 + high) & (advantages > 0)
    if dual is not None:
        gains = torch.where(advantages < 0, torch.maximum(gains, dual * advantages), gains)
        is_high = is_high | ((ratio > dual) & (advantages < 0))
    return TokenLoss(-gains, ratio.detach(), is_low, is_high)


def importance_weights(inputs: PolicyInput, config: PolicyGradientConfig) -> Tensor:
    """pi_old of the trainer over that of the sampler (M,), truncated or masked, without gradient.

    Truncated: Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training"); masked: the
    token or the whole sample gets 0 and still counts in the normalizer.
    """
    assert inputs.sampler_logprobs_M is not None
    difference = (inputs.old_logprobs_M - inputs.sampler_logprobs_M).detach()
    if config.importance_correction.startswith("sequence"):
        difference = over_samples(difference, inputs.owners_M, mean=False)
    weight = difference.exp()
    if config.importance_correction.endswith("truncate"):
        return weight.clamp(config.importance_floor, config.importance_cap)
    kept = (weight >= config.importance_floor) & (weight <= config.importance_cap)
    # Not a product: an infinite weight times 0 would be NaN.
    return torch.where(kept, weight, torch.zeros_like(weight))


def kl_value(difference: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(policy || reference) per token from d = log policy - log reference at tokens of the policy.

    k1 = d and k3 = exp(-d) - 1 + d have the right mean, k3 with less variance; k2 = d^2 / 2 is biased (Schulman 2020,
    "Approximating KL divergence").
    """
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    return torch.expm1(-difference) + difference


def kl_penalty(logprobs_M: Tensor, reference_M: Tensor, ratio_M: Tensor, config: PolicyGradientConfig) -> Tensor:
    """The KL term per token (M,), with the gradient that `config.kl_gradient` names.

    The gradient of KL(policy || reference) is E[d grad log p]. Differentiating an estimate under the expectation misses
    that the samples depend on the policy: k1 leaves 0, k3 the gradient of KL(reference || policy), k2 the right one.
    Times the differentiable ratio the first two are right, also for samples of an older policy.
    """
    difference = logprobs_M - reference_M
    value = kl_value(difference, config.kl_estimator)
    if config.kl_gradient == "estimator":
        return value
    if config.kl_gradient == "straight_through":
        right = kl_value(difference, "k2")
        return value.detach() + right - right.detach()
    return value * ratio_M


def value_loss(values_M: Tensor, old_values_M: Tensor, returns_M: Tensor, clip: float | None = None) -> Tensor:
    """Half the squared error of a value network per token (M,), PPO's clipped form where `clip` is given.

    The larger of the errors of v and of v clipped to old +- clip (Schulman et al. 2017, as in their code): a step that
    went past the clip towards the return gets no further gradient.
    """
    losses = (values_M - returns_M) ** 2
    if clip is not None:
        near = old_values_M + (values_M - old_values_M).clamp(-clip, clip)
        losses = torch.maximum(losses, (near - returns_M) ** 2)
    return 0.5 * losses


@torch.no_grad()
def gae(
    rewards_M: Tensor,
    values_M: Tensor,
    owners_M: Tensor,
    discount: float = 1.0,
    trace: float = 0.95,
    last_values_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates and returns, (M,) each (Schulman et al. 2015, arXiv:1506.02438, eq. 16).

    A_t = sum_k (discount trace)^k delta_{t+k}, delta_t = r_t + discount V_{t+1} - V_t; returns are A + V. Tokens of a
    sample are in order and adjacent. `last_values_N` is the value after each sample's last token: 0, the
    default, for one that ended.
    """
    if not len(owners_M):
        return rewards_M.clone(), rewards_M.clone()
    count = int(owners_M.max()) + 1
    lengths = torch.bincount(owners_M, minlength=count)
    starts = torch.searchsorted(owners_M.contiguous(), torch.arange(count, device=owners_M.device))
    # Samples side by side, so that the loop runs over the longest instead of over all tokens.
    place = torch.arange(len(owners_M), device=owners_M.device) - starts[owners_M]
    width = int(lengths.max())
    rewards, values = rewards_M.new_zeros(2, count, width + 1).unbind()
    rewards[owners_M, place], values[owners_M, place] = rewards_M, values_M
    if last_values_N is not None:
        values[torch.arange(count, device=owners_M.device), lengths] = last_values_N
    inside = torch.arange(width, device=owners_M.device) < lengths[:, None]
    advantages = torch.zeros_like(rewards)
    for at in range(width - 1, -1, -1):
        step = rewards[:, at] + discount * values[:, at + 1] - values[:, at]
        carried = step + discount * trace * advantages[:, at + 1]
        advantages[:, at] = torch.where(inside[:, at], carried, 0.0)
    found = advantages[owners_M, place]
    return found, found + values_M
