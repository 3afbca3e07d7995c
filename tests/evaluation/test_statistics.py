"""Statistics against exact enumeration and known values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.evaluation.statistics import (
    bootstrap,
    difference_interval,
    holm,
    mcnemar,
    mean_interval,
    paired_comparison,
    pass_at_k,
    pass_hat_k,
    sign_flip,
    standard_error,
    t_quantile,
    tango,
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


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        # Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91: airway hyper-responsiveness before
        # and after transplantation, exact conditional test 0.070.
        (1, 7, 0.0703125),
        # Agresti, Categorical Data Analysis, table of approval ratings (86 and 150 changed): scipy.stats.binomtest.
        (86, 150, 3.715936139571442e-05),
        # statsmodels 0.15.0, contingency_tables.mcnemar([[101, 59], [121, 33]], exact=True).
        (59, 121, 4.4344492637551645e-06),
        # scipy.stats.binomtest(4000, 8200), where sums of floats would overflow.
        (4000, 4200, 0.027972423571324654),
    ],
)
def test_mcnemar_known_values(wins, losses, p):
    assert mcnemar(wins, losses) == pytest.approx(p, rel=1e-9)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


def test_tango_known_values():
    # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850: same data, score interval -0.517 to -0.026.
    assert tango(1, 7, 21) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    assert tango(0, 0, 0) == (-1, 1)
    assert tango(5, 0, 5)[1] == 1 and tango(0, 5, 5)[0] == -1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60))
def test_tango_mirrors_and_holds_its_difference(wins, losses, more):
    n = wins + losses + more
    low, high = tango(wins, losses, n)
    assert -1 <= low < (wins - losses) / n < high <= 1
    assert tango(losses, wins, n) == (pytest.approx(-high), pytest.approx(-low))


@given(st.integers(0, 20), st.integers(0, 20))
def test_tango_excludes_zero_when_the_score_test_does(wins, losses):
    # Under a difference of 0 Tango's statistic is McNemar's (b - c) / sqrt(b + c).
    low, high = tango(wins, losses, 60)
    statistic = abs(wins - losses) / math.sqrt(max(wins + losses, 1))
    if abs(statistic - 1.96) > 1e-3:
        assert (low > 0 or high < 0) == (statistic > 1.96)


@pytest.mark.parametrize(
    ("freedom", "value"),
    # Tables of Student's t, two-sided 5%.
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (10, 2.2281), (49, 2.0096), (120, 1.9799), (1000, 1.9623)],
)
def test_t_quantile_known_values(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=6e-5)


def test_t_quantile_joins_its_two_ways():
    assert t_quantile(200) > t_quantile(201) > t_quantile(202)
    assert t_quantile(200) - t_quantile(201) == pytest.approx(t_quantile(201) - t_quantile(202), rel=0.02)
    assert t_quantile(0) == math.inf and t_quantile(10**9) == pytest.approx(1.959964, abs=1e-6)


SCORES = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0.5, 0.25])
GROUPS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4])


def test_clustered_standard_error_known_value():
    # statsmodels 0.15.0: OLS(SCORES, ones).fit(cov_type="cluster", cov_kwds={"groups": GROUPS, "use_correction": 0})
    # gives bse 0.13456821; times sqrt(5 / 4) for five clusters.
    assert standard_error(SCORES, GROUPS) == (pytest.approx(0.13456821 * math.sqrt(5 / 4), rel=1e-7), 5)
    # Miller 2024, arXiv:2411.00640: SE^2 + (1 / n^2) sum over pairs within a cluster, written out.
    n, deviations = len(SCORES), SCORES - SCORES.mean()
    within = sum(deviations[i] * deviations[j] for i in range(n) for j in range(n) if i != j and GROUPS[i] == GROUPS[j])
    squared = float(deviations @ deviations) / n**2 + within / n**2
    assert standard_error(SCORES, GROUPS)[0] == pytest.approx(math.sqrt(squared * 5 / 4))
    assert standard_error(SCORES)[0] == pytest.approx(SCORES.std(ddof=1) / math.sqrt(n))


def test_difference_interval_known_value():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0, 0.1, 0.4, -0.2, 0.6, 0.1, 0.2, 0.3, 0.05, -0.05, 0.15])
    # scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert difference_interval(values) == (pytest.approx(0.046702522019), pytest.approx(0.293297477981))
    # scipy.stats.permutation_test over all sign changes: 0.01196.
    assert sign_flip(values, 0) == pytest.approx(0.011963, abs=0.004)


def test_one_cluster_says_nothing():
    assert difference_interval(np.array([0.5])) == (-1, 1)
    assert difference_interval(np.array([3.0, 2.0]), np.array([0, 0])) == (-3, 3)
    found = mean_interval([1.0, 0.0, 1.0], clusters=["a", "a", "a"])
    assert (found.low, found.high, found.n) == (0, 1, 3)


def test_clusters_widen_the_interval_of_a_mean():
    scores, names = [1.0] * 30 + [0.0] * 30, [i // 6 for i in range(60)]
    alone, together = mean_interval(scores), mean_interval(scores, clusters=names)
    assert (together.value, together.n) == (0.5, 60)
    assert together.low < alone.low and together.high > alone.high
    # Ten clusters of equal scores say as much as ten scores, but for t in place of z and the mean being estimated.
    assert together.low == pytest.approx(wilson(5, 9, t_quantile(9))[0] - 5 / 9 + 0.5, abs=0.03)
    assert mean_interval(scores, clusters=range(60)) == alone


def test_clusters_make_a_comparison_careful():
    a, b = [1.0] * 8 + [0.0] * 8, [0.0] * 16
    assert paired_comparison(a, b).better == "a"
    found = paired_comparison(a, b, clusters=[i // 4 for i in range(16)])
    assert found.better is None and found.p == 0.5 and found.low < 0 < found.high


def test_scores_beyond_one_get_a_bootstrap():
    found = mean_interval([2.0, 3.0, 5.0, 2.0, 4.0] * 20)
    assert 2.9 < found.low < 3.2 < found.high < 3.5
    wide = mean_interval([2.0] * 50 + [4.0] * 50, clusters=[i // 25 for i in range(100)])
    assert wide.low < 2.6 and wide.high > 3.4


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
    assert (found.low, found.high) == tango(15, 0, 100)
    assert 0.07 < found.low < 0.15 < found.high < 0.24
    mirrored = paired_comparison(b, a)
    assert (mirrored.better, mirrored.difference, mirrored.p) == ("b", -found.difference, found.p)


def test_equal_systems_are_never_called_better():
    found = paired_comparison([1, 0, 1], [1, 0, 1])
    assert (found.difference, found.p, found.better) == (0, 1, None)
    # Three items on which two systems agree do not prove that they always would.
    assert found.low < -0.5 and found.high > 0.5
    graded = paired_comparison([0.5, 0.25, 1], [0.5, 0.25, 1])
    assert (graded.low, graded.high) == (found.low, found.high)
    clustered = paired_comparison([0.5] * 9, [0.5] * 9, clusters=[1, 1, 1, 2, 2, 2, 3, 3, 3])
    assert (clustered.low, clustered.high) == (found.low, found.high)
    # Differences of other sizes have no such scale.
    assert paired_comparison([-2.0, 3.0], [-2.0, 3.0]).high == 0


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
    with pytest.raises(ValueError, match=r"pass\^k needs"):
        pass_hat_k(n, c, k)


@given(st.integers(1, 7), st.data())
def test_pass_hat_k_is_the_enumerated_chance(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations(range(n), k))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(max(subset) < c for subset in subsets) / len(subsets))


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


def test_twelve_differences_are_still_flipped_exactly():
    values = np.arange(1.0, 13.0)
    values[0] = -1.0
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=12)
    ]
    assert sign_flip(values, 0) == sum(total >= values.sum() - 1e-9 for total in sums) / 2**12
