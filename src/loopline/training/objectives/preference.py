"""Preference objectives: DPO and its relatives, KTO, ORPO, SimPO, CPO.

    losses_P = dpo(PreferenceInput(logprobs_N, lengths_N, reference_N), beta=0.1)
    DPO(beta=0.1, kind="ipo").loss(model, batch)

Paired losses take answers in twos, chosen then rejected, 2i and 2i+1; KTO takes answers one by one. Batches hold the
reference policy's summed log-prob of each answer as `scalars["reference"]`, computed once beforehand. Every loss is a
sum over pairs or answers, so a step may be split anywhere between pairs. Not covered: losses that compare a batch's
pairs with each other (AOT).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from loopline.model.language_model import LanguageModel
from loopline.training.batch import Batch
from loopline.training.objectives.objective import Loss
from loopline.training.objectives.scores import TokenScores, score_tokens, sum_by_sequence


@dataclass(frozen=True)
class PreferenceInput:
    """What preference losses see of N answers."""

    logprobs_N: Tensor
    """Summed log-prob of each answer under the policy."""
    lengths_N: Tensor
    """Its tokens."""
    reference_N: Tensor | None = None
    """Summed log-prob under the reference policy, for losses that have one."""

    @property
    def margins_N(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x)."""
        if self.reference_N is None:
            raise ValueError("this loss compares with a reference policy: give reference_N")
        return self.logprobs_N - self.reference_N

    @property
    def means_N(self) -> Tensor:
        """Mean log-prob per token."""
        return self.logprobs_N / self.lengths_N.clamp(min=1)


# Losses of a pair given the margins c and r of its chosen and rejected answer; beta and label smoothing s follow.
Pair = Callable[[Tensor, Tensor, float, float], Tensor]


def _sigmoid(c: Tensor, r: Tensor, beta: float, s: float) -> Tensor:
    logits = beta * (c - r)
    losses = -F.logsigmoid(logits)
    return losses if s == 0 else losses * (1 - s) - F.logsigmoid(-logits) * s


def _robust(c: Tensor, r: Tensor, beta: float, s: float) -> Tensor:
    logits = beta * (c - r)
    return (-(1 - s) * F.logsigmoid(logits) + s * F.logsigmoid(-logits)) / (1 - 2 * s)


def _exo(c: Tensor, r: Tensor, beta: float, s: float) -> Tensor:
    logits = beta * (c - r)
    wins, loses = F.logsigmoid(logits), F.logsigmoid(-logits)
    return wins.exp() * (wins - math.log1p(-s)) + loses.exp() * (loses - math.log(s))


def _nca(c: Tensor, r: Tensor, beta: float, s: float) -> Tensor:
    return -F.logsigmoid(beta * c) - 0.5 * F.logsigmoid(-beta * c) - 0.5 * F.logsigmoid(-beta * r)


def _discopop(c: Tensor, r: Tensor, beta: float, s: float) -> Tensor:
    logits = beta * (c - r)
    gate = torch.sigmoid(logits / DISCOPOP_TAU)
    return -F.logsigmoid(logits) * (1 - gate) + torch.exp(-logits) * gate


DISCOPOP_TAU = 0.05
PAIR_LOSSES: Mapping[str, Pair] = {
    # Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with smoothing, conservative DPO (Mitchell 2023).
    "sigmoid": _sigmoid,
    # The same of mean log-probs per token.
    "sigmoid_norm": _sigmoid,
    # Zhao et al. 2023 (SLiC), arXiv:2305.10425, on DPO's rewards.
    "hinge": lambda c, r, beta, s: torch.relu(1 - beta * (c - r)),
    # Azar et al. 2023, arXiv:2310.12036, eq. 17, of mean log-ratios per token; beta is its tau.
    "ipo": lambda c, r, beta, s: (c - r - 1 / (2 * beta)) ** 2,
    # Chowdhury et al. 2024, arXiv:2403.00409: unbiased under labels flipped with probability s < 1/2.
    "robust": _robust,
    # Ji et al. 2024, arXiv:2402.00856, eq. 16; needs smoothing.
    "exo_pair": _exo,
    # Chen et al. 2024, arXiv:2402.05369.
    "nca_pair": _nca,
    # Jung et al. 2024, arXiv:2404.04656, on pairs, without its shift.
    "bco_pair": lambda c, r, beta, s: -F.logsigmoid(beta * c) - F.logsigmoid(-beta * r),
    # Wu et al. 2024, arXiv:2405.00675, with probabilities 1 and 0.
    "sppo_hard": lambda c, r, beta, s: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
    # D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7: raise the chosen, lower the rejected answer.
    "apo_zero": lambda c, r, beta, s: 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r),
    # Eq. 8: lower both, the rejected one more.
    "apo_down": lambda c, r, beta, s: torch.sigmoid(beta * c) + 1 - torch.sigmoid(beta * (c - r)),
    # Lu et al. 2024, arXiv:2406.08414, eq. 5.
    "discopop": _discopop,
}
PER_TOKEN = ("ipo", "sigmoid_norm")
"""Pair losses of mean log-ratios per token instead of sums."""


def dpo(inputs: PreferenceInput, beta: float, kind: str = "sigmoid", label_smoothing: float = 0.0) -> Tensor:
    """Losses of the pairs (P,), in the form that `PAIR_LOSSES` names.

    `label_smoothing` is the share of labels taken to be flipped; "sigmoid", "robust" and "exo_pair" use it.
    """
    margins = inputs.margins_N
    if kind in PER_TOKEN:
        margins = margins / inputs.lengths_N.clamp(min=1)
    return PAIR_LOSSES[kind](margins[0::2], margins[1::2], beta, label_smoothing)


def ipo(inputs: PreferenceInput, beta: float) -> Tensor:
    """Losses of the pairs (P,): squared distance of the margin from 1/(2 beta) (arXiv:2310.12036, eq. 17)."""
    return dpo(inputs, beta, "ipo")


def simpo(inputs: PreferenceInput, beta: float, gamma: float) -> Tensor:
    """Losses of the pairs (P,) without a reference (Meng et al. 2024, arXiv:2405.14734, eq. 6).

    -log sigmoid(beta (mean log p chosen - mean log p rejected) - gamma).
    """
    means = inputs.means_N
    return -F.logsigmoid(beta * (means[0::2] - means[1::2]) - gamma)


def orpo(inputs: PreferenceInput, weight: float) -> Tensor:
    """Losses of the pairs (P,) without a reference (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

    The chosen answer's mean negative log-likelihood plus `weight` times -log sigmoid of the log odds ratio, where
    odds = P / (1 - P) and P is the geometric mean of an answer's token probabilities (eq. 4).
    """
    means = inputs.means_N
    odds = means - log1mexp(means)
    return -means[0::2] - weight * F.logsigmoid(odds[0::2] - odds[1::2])


def cpo(inputs: PreferenceInput, beta: float, weight: float) -> Tensor:
    """Losses of the pairs (P,): DPO with a uniform reference, and likelihood (Xu et al. 2024, arXiv:2401.08417, eq. 5).

    The likelihood is the chosen answer's mean per token.
    """
    summed = inputs.logprobs_N
    losses = -F.logsigmoid(beta * (summed[0::2] - summed[1::2]))
    return losses - weight * inputs.means_N[0::2] if weight else losses


def kto(
    inputs: PreferenceInput,
    desirable_N: Tensor,
    kl: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kind: Literal["kto", "apo_zero_unpaired"] = "kto",
) -> Tensor:
    """Losses of single answers (N,) (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8).

    w (1 - sigmoid(beta (margin - kl))) where `desirable_N` is true, w (1 - sigmoid(beta (kl - margin))) elsewhere.
    `kl` estimates KL(policy || reference); no gradient flows through it. "apo_zero_unpaired" has none
    (arXiv:2408.06266, eq. 7, for single answers).
    """
    margins = inputs.margins_N
    centre = torch.zeros_like(kl) if kind == "apo_zero_unpaired" else kl.detach()
    rewards = beta * torch.where(desirable_N, margins - centre, centre - margins)
    weights = torch.where(desirable_N, desirable_weight, undesirable_weight)
    return weights * (1 - torch.sigmoid(rewards))


def kto_kl(margins_N: Tensor) -> Tensor:
    """KTO's KL estimate from answers to other prompts: the mean of their margins, at least 0 (section 4.1)."""
    return margins_N.mean().clamp(min=0).detach()


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation (Maechler 2012)."""
    x = x.clamp(max=-1e-7)
    small = x > -math.log(2)
    return torch.where(small, (-torch.expm1(x.clamp(min=-1.0))).log(), torch.log1p(-x.clamp(max=-0.5).exp()))


def gather_answers(model: LanguageModel, batch: Batch, with_reference: bool) -> PreferenceInput:
    """The batch's answers as a preference loss sees them."""
    scores = score_tokens(model, batch)
    return answers_of(scores, batch, with_reference)


def answers_of(scores: TokenScores, batch: Batch, with_reference: bool) -> PreferenceInput:
    """Sums over the sequences of a batch; weights other than 0 and 1 weigh tokens in sum and length alike."""
    summed = sum_by_sequence(scores.logprobs_M * scores.weights_M, scores, batch)
    lengths = sum_by_sequence(scores.weights_M, scores, batch)
    reference = batch.scalars["reference"].to(summed) if with_reference else None
    return PreferenceInput(summed, lengths, reference)


class DPO:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), and the losses built on it.

    Sequences come in pairs, chosen then rejected, 2i and 2i+1; `scalars["reference"]` holds the reference policy's
    summed log-prob of each. `sft_weight` adds the chosen answer's own log-likelihood, per token, which keeps it from
    falling together with the rejected one (RPO, arXiv:2404.19733).
    """

    def __init__(
        self, beta: float, sft_weight: float = 0.0, kind: str = "sigmoid", label_smoothing: float = 0.0
    ) -> None:
        if kind not in PAIR_LOSSES:
            raise ValueError(f"there is no pair loss {kind!r}: use one of {', '.join(PAIR_LOSSES)}")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is the share of flipped labels, in [0, 0.5), not {label_smoothing}")
        if kind == "exo_pair" and not label_smoothing:
            raise ValueError("exo_pair needs label_smoothing above 0, for example 0.1")
        self.beta, self.sft_weight, self.kind, self.label_smoothing = beta, sft_weight, kind, label_smoothing

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        answers = gather_answers(model, batch, with_reference=True)
        losses = dpo(answers, self.beta, self.kind, self.label_smoothing)
        if self.sft_weight:
            losses = losses - self.sft_weight * answers.logprobs_N[0::2] / answers.lengths_N[0::2].clamp(min=1)
        return _paired(losses, self.beta * answers.margins_N.detach())


class SimPO:
    """Simple preference optimization: DPO's logistic loss of mean log-probs, with a margin and without a reference."""

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        self.beta, self.gamma = beta, gamma

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        answers = gather_answers(model, batch, with_reference=False)
        return _paired(simpo(answers, self.beta, self.gamma), self.beta * answers.means_N.detach())


class ORPO:
    """Odds-ratio preference optimization: supervised training and preference in one, without a reference."""

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        answers = gather_answers(model, batch, with_reference=False)
        return _paired(orpo(answers, self.weight), self.weight * answers.means_N.detach())


class CPO:
    """Contrastive preference optimization: DPO without a reference, and likelihood of the chosen answer."""

    def __init__(self, beta: float = 0.1, weight: float = 1.0) -> None:
        self.beta, self.weight = beta, weight

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        answers = gather_answers(model, batch, with_reference=False)
        return _paired(cpo(answers, self.beta, self.weight), self.beta * answers.logprobs_N.detach())


class KTO:
    """Kahneman-Tversky optimization on single answers marked good or bad.

    `scalars["label"]` is 1 for a desirable answer, 0 for an undesirable one, and -1 for an answer to another row's
    prompt: those only estimate the KL, without gradient, and add nothing to the normalizer. A step that is split into
    several batches gets one estimate for all of them in `scalars["kl"]`, equal for every sequence; without it each
    batch estimates its own.
    """

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        kind: Literal["kto", "apo_zero_unpaired"] = "kto",
    ) -> None:
        self.beta, self.weights, self.kind = beta, (desirable_weight, undesirable_weight), kind

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        answers = gather_answers(model, batch, with_reference=True)
        labels = batch.scalars["label"].to(answers.logprobs_N.device)
        margins = answers.margins_N.detach()
        asked, other = labels >= 0, labels < 0
        if "kl" in batch.scalars:
            kl = batch.scalars["kl"].to(margins)[0]
        elif bool(other.any()):
            kl = kto_kl(margins[other])
        elif self.kind == "kto":
            raise ValueError('KTO needs answers with label -1 in every batch, or scalars["kl"]')
        else:
            kl = margins.new_zeros(())
        kept = PreferenceInput(
            answers.logprobs_N[asked], answers.lengths_N[asked], batch.scalars["reference"].to(margins)[asked]
        )
        desirable = labels[asked] > 0
        losses = kto(kept, desirable, kl, self.beta, *self.weights, self.kind)
        rewards, count = self.beta * margins[asked], len(losses)
        metrics = {
            "loss": float(losses.detach().mean()) if count else 0.0,
            "kl": float(kl),
            "chosen_reward": _mean(rewards[desirable]),
            "rejected_reward": _mean(rewards[~desirable]),
        }
        return losses.sum(), float(count), metrics


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _paired(losses: Tensor, rewards_N: Tensor) -> Loss:
    """A paired objective's result from its losses and the answers' implied rewards."""
    chosen, rejected = rewards_N[0::2], rewards_N[1::2]
    metrics = {
        "loss": float(losses.detach().mean()),
        "accuracy": float((chosen > rejected).float().mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
    }
    return losses.sum(), float(len(losses)), metrics
