"""The decision: gates bind, the objective decides, smaller wins at equal worth, and reasons say why."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from loopline.base.errors import UserError
from loopline.evaluation.statistics import Estimate
from loopline.release.choose import choose, final_check, objective, weights_of
from loopline.release.config import Gates, Power, ReleaseConfig
from loopline.release.evidence import metrics_of
from tests.release.synthetic import SETS, evidence, graded

TOOLS = {"success": {"value": 0.9}, "malformed_rate": 0.0, "pass_all": 0.8}


def rates(value: float, **changes: float) -> dict[str, float]:
    return {**dict.fromkeys(SETS, value), **changes}


def test_the_better_candidate_is_released_with_its_reasons(tmp_path):
    better, before = evidence(tmp_path, "second", 0.9), evidence(tmp_path, "first", 0.8)
    decision = choose([before, better], ReleaseConfig(reference="first"))
    assert (decision.champion, decision.reference, decision.passed) == ("second", "first", True)
    assert "second has the highest objective" in decision.reasons[0]
    assert any(row["task"] == "sums" and row["better"] == "a" for row in decision.comparisons)


def test_a_difference_is_called_one_for_all_comparisons_together(tmp_path):
    candidates = [evidence(tmp_path, "first", 0.8), evidence(tmp_path, "second", rates(0.8, programs=0.83))]
    row = next(
        row for row in choose(candidates, ReleaseConfig(reference="first")).comparisons if row["task"] == "programs"
    )
    # Six tasks gained and none lost is p = 0.031 alone, but not among five comparisons.
    assert row["p"] < 0.05 < row["p_holm"] == 5 * row["p"] and row["difference"] > 0 and row["better"] is None


def test_equal_weights_over_the_task_sets_are_the_default_objective(tmp_path):
    one = evidence(tmp_path, "one", rates(0.8, sums=0.2))
    weights = weights_of([one], ReleaseConfig())
    assert weights == dict.fromkeys(sorted(SETS), 0.2)
    value, terms = objective(one, [one], weights)
    assert value == pytest.approx(sum(one.metrics[name].value for name in SETS) / 5) and len(terms) == 5


def test_the_objective_weighs_sets_tags_and_costs(tmp_path):
    small = evidence(tmp_path, "small", rates(0.8, sums=0.75), parameters=1000)
    large = evidence(tmp_path, "large", 0.8, parameters=4000)
    loose = ReleaseConfig(objective={"sums": 1.0, "tag:plain": 0.5, "latency": -0.2}, gates=Gates(margin=0.5))
    value, terms = objective(small, [small, large], weights_of([small, large], loose))
    assert terms["latency"] == pytest.approx(-0.2 / 4)
    assert terms["tag:plain"] == pytest.approx(0.5 * small.metrics["tag:plain"].value)
    assert choose([small, large], loose).champion == "small"
    assert choose([small, large], loose.model_copy(update={"objective": {"sums": 1.0}})).champion == "large"


def test_names_nobody_measured_are_refused(tmp_path):
    one = evidence(tmp_path, "one", 0.8)
    with pytest.raises(UserError, match="'poems', which no candidate was measured on.*tag:must_refuse"):
        choose([one], ReleaseConfig(objective={"poems": 1.0}))
    with pytest.raises(UserError, match="floors names 'poems'"):
        choose([one, evidence(tmp_path, "two", 0.8)], ReleaseConfig(floors={"poems": -0.1}))


def test_the_strongest_cannot_buy_back_a_broken_gate(tmp_path):
    unsafe = evidence(tmp_path, "bold", rates(0.99, manners=0.3))
    decision = choose([unsafe, evidence(tmp_path, "polite", rates(0.75, manners=0.9))], ReleaseConfig())
    # The reference is the strongest within the limits: the unsafe one must not fail the others.
    assert decision.champion == decision.reference == "polite"
    row = next(row for row in decision.candidates if row["name"] == "bold")
    assert "refusal of unsafe requests" in row["failed"] and "no regression: manners" in row["failed"]


@pytest.mark.parametrize(("rate", "passes"), [(0.60, True), (0.595, False)])
def test_the_limit_of_refusals_itself_passes(tmp_path, rate, passes):
    one = evidence(tmp_path, "one", 0.9)
    exact = tuple(
        replace(item, score=float(number < rate * 200))
        for number, item in enumerate(item for item in graded({"manners": 1.0}, n=400) if "must_refuse" in item.tags)
    )
    one = replace(one, metrics={**one.metrics, "refusal": metrics_of(exact)["refusal"]})
    failed = choose([one], ReleaseConfig()).candidates[0]["failed"]
    assert ("refusal of unsafe requests" not in failed) == passes


def test_the_gate_is_on_the_bound_not_on_the_point_estimate(tmp_path):
    strict = ReleaseConfig(reference="first", gates=Gates(margin=0.12), power=Power(equal_passes=0.51))
    candidates = [evidence(tmp_path, "second", rates(0.8, programs=0.7)), evidence(tmp_path, "first", 0.8)]
    decision = choose(candidates, strict)
    row = next(row for row in decision.comparisons if row["task"] == "programs")
    assert row["difference"] > -0.12 and row["low"] < -row["power"]["used"]
    failed = next(one for one in decision.candidates if one["name"] == "second")["failed"]
    assert failed == ["no regression: programs"]


def test_a_loss_wholly_inside_the_margin_does_not_block(tmp_path):
    config = ReleaseConfig(reference="first", gates=Gates(margin=0.3))
    decision = choose(
        [evidence(tmp_path, "second", rates(0.8, programs=0.7)), evidence(tmp_path, "first", 0.8)], config
    )
    row = next(row for row in decision.comparisons if row["task"] == "programs")
    assert row["better"] == "b" and row["low"] > -0.3
    assert all(one["passed"] for one in decision.candidates)


def test_a_floor_binds_where_the_margin_does_not(tmp_path):
    candidates = [evidence(tmp_path, "second", rates(0.8, programs=0.65)), evidence(tmp_path, "first", 0.8)]
    loose = ReleaseConfig(reference="first", gates=Gates(margin=0.5))
    assert all(row["passed"] for row in choose(candidates, loose).candidates)
    for name in ("programs", "tag:plain"):
        floored = loose.model_copy(update={"floors": {name: -0.02}})
        failed = next(row for row in choose(candidates, floored).candidates if row["name"] == "second")["failed"]
        assert failed == [f"no regression: {name}"]


def test_equal_scores_go_to_the_smaller_candidate_whatever_the_order(tmp_path):
    candidates = [
        evidence(tmp_path, "one", 0.8, parameters=4000),
        evidence(tmp_path, "small", 0.8, parameters=1000),
        evidence(tmp_path, "twin", 0.8, parameters=4000),
    ]
    decisions = []
    for seed in range(4):
        random.Random(seed).shuffle(candidates)
        decisions.append(choose(candidates, ReleaseConfig()))
    assert {decision.champion for decision in decisions} == {"small"}
    assert all(decision == decisions[0] for decision in decisions)


def test_when_nothing_passes_the_reference_goes_out_marked_or_the_stage_stops(tmp_path):
    candidates = [
        evidence(tmp_path, "first", rates(0.9, manners=0.2)),
        evidence(tmp_path, "second", rates(0.95, manners=0.1)),
    ]
    decision = choose(candidates, ReleaseConfig(reference="first"))
    assert decision.champion == "first" and not decision.passed
    assert "No candidate passes all gates" in decision.reasons[0]
    with pytest.raises(UserError, match="No candidate passes"):
        choose(candidates, ReleaseConfig(none_passes="fail"))


def test_size_and_tool_gates(tmp_path):
    config = ReleaseConfig(gates=Gates(max_bytes=10_000))
    big = evidence(tmp_path, "big", 0.8, parameters=4000, tools=TOOLS)
    clumsy = evidence(tmp_path, "clumsy", 0.8, tools={**TOOLS, "malformed_rate": 0.5})
    decision = choose([big, clumsy, evidence(tmp_path, "fine", 0.8, tools=TOOLS)], config)
    failed = {row["name"]: row["failed"] for row in decision.candidates}
    assert failed == {"big": ["size"], "clumsy": ["malformed tool calls"], "fine": []}


def test_a_weighed_metric_that_only_one_candidate_lacks_is_refused(tmp_path):
    full, partial = evidence(tmp_path, "full", 0.8), evidence(tmp_path, "partial", {"sums": 0.8})
    with pytest.raises(UserError, match="'partial' was not measured on 'forms'"):
        choose([full, partial], ReleaseConfig())
    assert choose([partial], ReleaseConfig()).champion == "partial"


def test_the_last_check_fails_what_loses_on_held_out_tasks(tmp_path):
    good, worse = evidence(tmp_path, "first", 0.8), evidence(tmp_path, "second", rates(0.8, sums=0.5))
    config = ReleaseConfig(reference="first")
    failed = final_check(worse, good, None, config, 0)
    assert not failed["passed"] and "no regression: sums" in failed["failed"][0]
    fine = final_check(good, good, worse, config, 0)
    assert fine["passed"] and fine["comparisons"] == [] and fine["control"]["name"] == "second"
    assert any(row["better"] == "a" for row in fine["control"]["comparisons"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objective": {"latency": 0.1}}, "latency is a cost"),
        ({"objective": {"sums": -1.0}}, "better when higher"),
        ({"objective": {"bytes": -1.0}}, "at least one weight above 0"),
        ({"floors": {"sums": 0.5}}, "largest loss allowed, as a negative number"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ReleaseConfig(**settings)


def test_without_a_named_reference_it_is_the_strongest_within_the_limits(tmp_path):
    weak, strong = evidence(tmp_path, "weak", 0.7), evidence(tmp_path, "strong", 0.9)
    for candidates in ([weak, strong], [strong, weak]):
        decision = choose(candidates, ReleaseConfig())
        assert decision.reference == decision.champion == "strong"
        failed = next(row for row in decision.candidates if row["name"] == "weak")["failed"]
        assert {f"no regression: {name}" for name in SETS} <= set(failed)


@pytest.mark.parametrize(("value", "passes"), [(0.4, True), (0.41, False)])
def test_the_limit_of_refusing_harmless_requests_itself_passes(tmp_path, value, passes):
    one = evidence(tmp_path, "one", 0.9)
    one = replace(one, metrics={**one.metrics, "over_refusal": Estimate(value, 0.0, 1.0, 100)})
    failed = choose([one], ReleaseConfig(gates=Gates(max_over_refusal=0.4))).candidates[0]["failed"]
    assert ("refusal of harmless requests" not in failed) == passes


def test_the_gate_on_parameters(tmp_path):
    config = ReleaseConfig(gates=Gates(max_parameters=2000))
    exact, big = evidence(tmp_path, "exact", 0.8, parameters=2000), evidence(tmp_path, "big", 0.8, parameters=2001)
    failed = {row["name"]: row["failed"] for row in choose([exact, big], config).candidates}
    assert failed == {"exact": [], "big": ["parameters"]}


def test_each_regression_gate_says_its_limit_and_each_loser_why(tmp_path):
    candidates = [evidence(tmp_path, "first", 0.8), evidence(tmp_path, "second", rates(0.8, programs=0.6))]
    decision = choose(candidates, ReleaseConfig(reference="first", gates=Gates(margin=0.5)))
    gates = [gate for gate in decision.gates if gate["gate"].startswith("no regression")]
    assert gates and all(gate["limit"] <= -0.5 and gate["passed"] == (gate["value"] > gate["limit"]) for gate in gates)
    reason = next(reason for reason in decision.reasons if reason.startswith("second"))
    assert "it loses most on programs (-0.0" in reason
    even = choose([evidence(tmp_path, "first", 0.8), evidence(tmp_path, "third", 0.8)], ReleaseConfig())
    assert not any("loses most" in reason for reason in even.reasons)
