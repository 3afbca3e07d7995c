"""Statistics against exact enumeration and known values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.evaluation.statistics import (
    bootstrap,
    holm,
    mcnemar,
    mean_interval,
    paired_comparison,
    pass_at_k,
    sign_flip,
    wilson,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_known_values(k, n, low, high):
    assert wilson(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 500), st.data())
def test_wilson_holds_its_share_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = wilson(n - k, n)
    assert (low, high) == (pytest.approx(1 - mirrored[1]), pytest.approx(1 - mirrored[0]))


def test_wilson_covers():
    # Exact coverage by enumeration of the binomial: near 95% on average over shares.
    n, coverage = 40, []
    for share in np.linspace(0.05, 0.95, 19):
        inside = [k for k in range(n + 1) if wilson(k, n)[0] <= share <= wilson(k, n)[1]]
        coverage.append(sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in inside))
    assert 0.94 < sum(coverage) / len(coverage) < 0.965 and min(coverage) > 0.90


def test_wilson_without_observations_says_nothing():
    assert wilson(0, 0) == (0, 1)


@given(st.integers(0, 7), st.integers(0, 7))
def test_mcnemar_is_the_enumerated_binomial(wins, losses):
    total = wins + losses
    extreme = sum(
        abs(2 * sum(flips) - total) >= abs(wins - losses) for flips in itertools.product((0, 1), repeat=total)
    )
    assert mcnemar(wins, losses) == pytest.approx(extreme / 2**total)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=8))
def test_sign_flip_is_exact_on_few_items(differences):
    total = abs(sum(differences))
    extreme = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= total - 1e-12
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert sign_flip(np.asarray(differences), 0) == pytest.approx(sum(extreme) / len(extreme))


def test_comparison_of_zeros_and_ones():
    a, b = [1.0] * 40 + [0.0] * 60, [1.0] * 25 + [0.0] * 75
    found = paired_comparison(a, b)
    assert (found.n, found.better, found.difference) == (100, "a", pytest.approx(0.15))
    assert found.p == pytest.approx(2 / 2**15)
    assert 0.07 < found.low < 0.15 < found.high < 0.23
    mirrored = paired_comparison(b, a)
    assert (mirrored.better, mirrored.difference, mirrored.p) == ("b", -found.difference, found.p)


def test_equal_systems_are_never_called_better():
    found = paired_comparison([1, 0, 1], [1, 0, 1])
    assert (found.difference, found.low, found.high, found.p, found.better) == (0, 0, 0, 1, None)


def test_one_pair_decides_nothing():
    for a, b in [(1, 0), (0.3, 0.9)]:
        found = paired_comparison([a], [b])
        assert found.n == 1 and found.p == 1 and found.better is None


def test_ungradable_pairs_are_left_out_and_counted():
    found = paired_comparison([1, None, 1, 0, None], [0, 1, None, 0, None])
    assert (found.n, found.ungradable, found.difference) == (2, 3, 0.5)
    with pytest.raises(ValueError, match="no pair"):
        paired_comparison([None], [1])
    with pytest.raises(ValueError, match="zip"):
        paired_comparison([1, 0], [1])


def test_false_alarms_stay_at_five_percent():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        a, b = rng.integers(0, 2, (2, 60)).astype(float)
        pair = (a - b)[a != b]
        alarms += mcnemar(int((pair > 0).sum()), int((pair < 0).sum())) < 0.05
    assert alarms / 400 < 0.06


def test_a_real_difference_of_scores_is_found():
    rng = np.random.default_rng(1)
    base = rng.random(200) * 0.8
    found = paired_comparison(list(base + 0.05 + 0.1 * rng.random(200)), list(base))
    assert found.better == "a" and found.p < 0.001 and found.low > 0


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 3))
def test_bootstrap_is_repeatable_and_stays_in_range(values, seed):
    low, high = bootstrap(np.asarray(values), seed, draws=500)
    assert (low, high) == bootstrap(np.asarray(values), seed, draws=500)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(2).random(2000)
    low, high = bootstrap(values, 0)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (low, high) == (pytest.approx(values.mean() - half, abs=2e-3), pytest.approx(values.mean() + half, abs=2e-3))


def test_mean_interval():
    found = mean_interval([1, 0, None, 1, 1])
    assert (found.value, found.n, found.ungradable) == (0.75, 4, 1)
    assert (found.low, found.high) == wilson(3, 4)
    graded = mean_interval([0.5, 0.25, 0.75])
    assert graded.low < graded.value == 0.5 < graded.high
    with pytest.raises(ValueError, match="no score"):
        mean_interval([None, None])


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_enumerated_chance(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_nonsense(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_holm_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_bonferroni_at_the_smallest(p_values):
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))
    assert all(raw <= found <= 1 for raw, found in zip(p_values, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1.0, min(p_values) * len(p_values)))
