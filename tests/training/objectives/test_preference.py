"""Preference losses against their papers' formulas in plain arithmetic, and the objectives on packed batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.training.batch import Example, build_batch
from loopline.training.loop import accumulate
from loopline.training.objectives import CPO, DPO, KTO, ORPO, PreferenceInput, SimPO
from loopline.training.objectives.preference import (
    DISCOPOP_TAU,
    PAIR_LOSSES,
    cpo,
    dpo,
    ipo,
    kto,
    kto_kl,
    log1mexp,
    orpo,
    simpo,
)
from tests.support_model import tiny_model

summed = st.floats(-30, -0.5)
lengths = st.integers(1, 9)


def sigma(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def log_sigma(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def by_hand(kind, c, r, beta, s, chosen_length, rejected_length):
    """The papers' equations for one pair of log-ratios, in floats."""
    h = beta * (c - r)
    return {
        "sigmoid": lambda: -(1 - s) * log_sigma(h) - s * log_sigma(-h),
        "sigmoid_norm": lambda: (
            -(1 - s) * log_sigma(beta * (c / chosen_length - r / rejected_length))
            - s * log_sigma(-beta * (c / chosen_length - r / rejected_length))
        ),
        "hinge": lambda: max(0.0, 1 - h),
        "ipo": lambda: (c / chosen_length - r / rejected_length - 1 / (2 * beta)) ** 2,
        "robust": lambda: (-(1 - s) * log_sigma(h) + s * log_sigma(-h)) / (1 - 2 * s),
        "exo_pair": lambda: sigma(h) * (log_sigma(h) - math.log(1 - s)) + sigma(-h) * (log_sigma(-h) - math.log(s)),
        "nca_pair": lambda: -log_sigma(beta * c) - 0.5 * log_sigma(-beta * c) - 0.5 * log_sigma(-beta * r),
        "bco_pair": lambda: -log_sigma(beta * c) - log_sigma(-beta * r),
        "sppo_hard": lambda: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: 1 - sigma(beta * c) + sigma(beta * r),
        "apo_down": lambda: sigma(beta * c) + 1 - sigma(h),
        "discopop": lambda: -log_sigma(h) * (1 - sigma(h / DISCOPOP_TAU)) + math.exp(-h) * sigma(h / DISCOPOP_TAU),
    }[kind]()


@pytest.mark.parametrize("kind", list(PAIR_LOSSES))
@settings(max_examples=15)
@given(policy=st.tuples(summed, summed), reference=st.tuples(summed, summed), size=st.tuples(lengths, lengths))
def test_pair_losses_are_their_equations(kind, policy, reference, size):
    s, beta = 0.15, 0.3
    inputs = PreferenceInput(*(torch.tensor(x, dtype=torch.float64) for x in (policy, size, reference)))
    got = dpo(inputs, beta, kind, s)
    c, r = (p - q for p, q in zip(policy, reference, strict=True))
    assert float(got) == pytest.approx(by_hand(kind, c, r, beta, s, *size), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "kind", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "bco_pair", "sppo_hard", "apo_zero"]
)
def test_at_the_reference_the_gradient_widens_the_margin(kind):
    policy = torch.tensor([-5.0, -5.0], requires_grad=True)
    dpo(PreferenceInput(policy, torch.tensor([4.0, 4.0]), torch.tensor([-5.0, -5.0])), 0.1, kind, 0.1).sum().backward()
    assert policy.grad[0] < 0 < policy.grad[1]


def test_robust_is_unbiased_under_flipped_labels():
    """The mean over flips with probability s of the robust loss is the clean loss (arXiv:2403.00409)."""
    s = 0.3
    c, r = torch.tensor([0.7], dtype=torch.float64), torch.tensor([-1.1], dtype=torch.float64)
    right, wrong = PAIR_LOSSES["robust"](c, r, 1.0, s), PAIR_LOSSES["robust"](r, c, 1.0, s)
    clean = PAIR_LOSSES["sigmoid"](c, r, 1.0, 0.0)
    torch.testing.assert_close((1 - s) * right + s * wrong, clean)


@settings(max_examples=20)
@given(policy=st.tuples(summed, summed), size=st.tuples(lengths, lengths))
def test_losses_without_a_reference_are_their_equations(policy, size):
    inputs = PreferenceInput(*(torch.tensor(x, dtype=torch.float64) for x in (policy, size)))
    mean = [p / n for p, n in zip(policy, size, strict=True)]
    assert float(simpo(inputs, 2.0, 0.5)) == pytest.approx(-log_sigma(2.0 * (mean[0] - mean[1]) - 0.5), rel=1e-9)
    odds = [math.exp(m) / (1 - math.exp(m)) for m in mean]
    expected = -mean[0] - 0.2 * log_sigma(math.log(odds[0] / odds[1]))
    assert float(orpo(inputs, 0.2)) == pytest.approx(expected, rel=1e-6)
    expected = -log_sigma(0.1 * (policy[0] - policy[1])) - 0.7 * mean[0]
    assert float(cpo(inputs, 0.1, 0.7)) == pytest.approx(expected, rel=1e-9)


@given(st.floats(-50, -1e-6))
def test_the_logarithm_of_one_minus_a_probability(x):
    got = float(log1mexp(torch.tensor(x, dtype=torch.float64)))
    assert got == pytest.approx(math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x)), rel=1e-9)


def test_its_gradient_is_finite_up_to_certainty():
    x = torch.tensor([-60.0, -1.0, -1e-5, 0.0], requires_grad=True)
    log1mexp(x).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_kto_is_its_equation_and_no_gradient_flows_through_the_kl():
    policy = torch.tensor([-4.0, -6.0, -3.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-5.0, -5.0, -3.5], dtype=torch.float64)
    good = torch.tensor([True, False, True])
    kl = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    losses = kto(PreferenceInput(policy, torch.ones(3), reference), good, kl, 0.5, 1.0, 1.5)
    expected = [1 - sigma(0.5 * (1.0 - 0.4)), 1.5 * (1 - sigma(0.5 * (0.4 + 1.0))), 1 - sigma(0.5 * (0.5 - 0.4))]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert kl.grad is None
    assert policy.grad[0] < 0 < policy.grad[1]
    assert float(kto_kl(torch.tensor([-3.0, 1.0]))) == 0.0
    assert float(kto_kl(torch.tensor([3.0, 1.0]))) == 2.0


def answers(count, **scalars):
    generator = torch.Generator().manual_seed(count)
    found = []
    for number in range(count):
        length = int(torch.randint(2, 9, (), generator=generator))
        tokens = torch.randint(10, 300, (2 + length,), generator=generator).tolist()
        own = {name: value(number) for name, value in scalars.items()}
        found.append(Example(tokens, [0.0, 0.0] + [1.0] * length, scalars=own))
    return found


def gradient(objective, batches):
    model = tiny_model(31).double()
    accumulate(model, objective, batches)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


OBJECTIVES = [
    *(DPO(0.2, 0.1, kind, 0.1) for kind in PAIR_LOSSES),
    SimPO(),
    ORPO(),
    CPO(),
    KTO(0.2, 1.0, 1.3),
    KTO(0.2, kind="apo_zero_unpaired"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{getattr(o, 'kind', '')}")
def test_a_step_may_be_split_anywhere_between_pairs(objective):
    examples = answers(
        16, reference=lambda n: -20.0 - n, label=lambda n: float(n % 3 == 0), kl=lambda n: 0.25, margin=lambda n: 0.0
    )
    found = []
    for size in (2, 4, 8, 16):
        rows = [examples[n : n + 2] for n in range(0, 16, 2)]
        found.append(gradient(objective, [build_batch(rows[n : n + size // 2]) for n in range(0, 8, size // 2)]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-9, rtol=1e-6)


def test_kto_reads_mismatched_answers_for_the_kl_only():
    own = answers(4, reference=lambda n: -30.0 - n, label=lambda n: float(n % 2))
    other = [Example(e.tokens, e.weights, scalars={"reference": -60.0, "label": -1.0}) for e in answers(3)]
    model = tiny_model(32)
    total, count, metrics = KTO(0.1).loss(model, build_batch([own, other]))
    assert count == 4
    with_kl = [Example(e.tokens, e.weights, scalars={**e.scalars, "kl": metrics["kl"]}) for e in own]
    assert metrics["kl"] > 0
    assert float(KTO(0.1).loss(model, build_batch([with_kl]))[0].detach()) == pytest.approx(
        float(total.detach()), rel=1e-5
    )
    with pytest.raises(ValueError, match="label -1"):
        KTO(0.1).loss(model, build_batch([own]))


def test_ipo_by_its_own_name_and_refusals():
    inputs = PreferenceInput(torch.tensor([-4.0, -6.0]), torch.tensor([2.0, 3.0]), torch.tensor([-5.0, -5.0]))
    assert torch.equal(ipo(inputs, 0.2), dpo(inputs, 0.2, "ipo"))
    with pytest.raises(ValueError, match="reference"):
        dpo(PreferenceInput(inputs.logprobs_N, inputs.lengths_N), 0.1)
    for settings_, words in [
        ({"kind": "aot"}, "aot"),
        ({"label_smoothing": 0.5}, "0.5"),
        ({"kind": "exo_pair"}, "0.1"),
    ]:
        with pytest.raises(ValueError, match=words):
            DPO(0.1, **settings_)
