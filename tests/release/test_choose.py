"""The decision: gates bind, the objective decides, smaller wins at equal worth, and reasons say why."""

from __future__ import annotations

import random

import pytest

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model
from loopline.release.choose import choose, objective
from loopline.release.config import Gates, ReleaseConfig
from loopline.release.evidence import checkpoint_size, refusal_metrics
from tests.release.synthetic import FAMILIES, UNSAFE, evidence, items, write_checkpoint


def rates(value: float, **changes: float) -> dict[str, float]:
    return {**dict.fromkeys(FAMILIES, value), **changes}


def test_the_better_candidate_is_released_with_its_reasons(tmp_path):
    better, reference = evidence(tmp_path, "rft2", 0.9), evidence(tmp_path, "align", 0.8)
    decision = choose([reference, better], ReleaseConfig())
    assert (decision.champion, decision.reference, decision.passed) == ("rft2", "align", True)
    assert "rft2 has the highest objective" in decision.reasons[0]
    assert any(row["task"] == "arithmetic" and row["better"] == "a" for row in decision.comparisons)


def test_strongest_reasoning_cannot_buy_back_a_broken_gate(tmp_path):
    unsafe = evidence(tmp_path, "grpo", rates(0.99, safety=0.3))
    decision = choose([unsafe, evidence(tmp_path, "align", rates(0.75, safety=0.9))], ReleaseConfig())
    assert decision.champion == "align"
    row = next(row for row in decision.candidates if row["name"] == "grpo")
    assert "refusal of unsafe requests" in row["failed"] and "no regression: safety" in row["failed"]


def test_a_regression_within_noise_still_fails_when_it_cannot_be_ruled_out(tmp_path):
    wide = ReleaseConfig(gates=Gates(margin=0.3))
    candidates = [evidence(tmp_path, "student", rates(0.8, code=0.7)), evidence(tmp_path, "align", rates(0.8))]
    assert choose(candidates, wide).candidates[0]["passed"]
    failed = next(row for row in choose(candidates, ReleaseConfig()).candidates if row["name"] == "student")["failed"]
    assert failed == ["no regression: code"]


def test_equal_scores_go_to_the_smaller_candidate_whatever_the_order(tmp_path):
    candidates = [
        evidence(tmp_path, "align", 0.8, parameters=4000),
        evidence(tmp_path, "quantize", 0.8, parameters=1000),
        evidence(tmp_path, "twin", 0.8, parameters=4000),
    ]
    decisions = []
    for seed in range(4):
        random.Random(seed).shuffle(candidates)
        decisions.append(choose(candidates, ReleaseConfig()))
    assert {decision.champion for decision in decisions} == {"quantize"}
    assert all(decision == decisions[0] for decision in decisions)


def test_when_nothing_passes_the_reference_goes_out_marked_or_the_stage_stops(tmp_path):
    candidates = [
        evidence(tmp_path, "align", rates(0.9, safety=0.2)),
        evidence(tmp_path, "rft2", rates(0.95, safety=0.1)),
    ]
    decision = choose(candidates, ReleaseConfig())
    assert decision.champion == "align" and not decision.passed
    assert "No candidate passes all gates" in decision.reasons[0]
    with pytest.raises(UserError, match="No candidate passes"):
        choose(candidates, ReleaseConfig(none_passes="fail"))


def test_size_and_tool_gates(tmp_path):
    tools = {"success": {"value": 0.9}, "malformed_rate": 0.5, "pass_all": 0.8}
    fine = {**tools, "malformed_rate": 0.0}
    config = ReleaseConfig(gates=Gates(max_bytes=10_000))
    big = evidence(tmp_path, "align", 0.8, parameters=4000, tools=fine)
    clumsy = evidence(tmp_path, "student", 0.8, tools=tools)
    decision = choose([big, clumsy, evidence(tmp_path, "quantize", 0.8, tools=fine)], config)
    failed = {row["name"]: row["failed"] for row in decision.candidates}
    assert failed == {"align": ["size"], "student": ["malformed tool calls"], "quantize": []}


def test_a_weighed_metric_that_only_one_candidate_lacks_is_refused(tmp_path):
    full, partial = evidence(tmp_path, "align", 0.8), evidence(tmp_path, "student", {"arithmetic": 0.8})
    with pytest.raises(UserError, match="'student' was not measured on 'code'"):
        objective(partial, [full, partial], ReleaseConfig())
    assert objective(partial, [partial], ReleaseConfig())[0] > 0


def test_refusal_style_counts_refusing_harmless_requests_apart_from_helping_badly():
    rows = items({"safety": 1.0}, n=10)
    rows[1] |= {"score": 0.0, "flags": ["over_refusal"]}
    rows[3] |= {"score": 0.0, "flags": []}
    rows[0] |= {"score": 0.0, "flags": ["unsafe_help"]}
    metrics = refusal_metrics(rows, UNSAFE)
    assert metrics["refusal"].value == pytest.approx(4 / 5)
    assert metrics["over_refusal"].value == pytest.approx(1 / 5)


def test_cost_is_counted_from_the_files(tmp_path):
    path = write_checkpoint(tmp_path)
    size = checkpoint_size(path)
    assert size.parameters == sum(value.numel() for value in load_model(path).parameters())
    assert size.bytes == (path / "model.safetensors").stat().st_size and size.flops == 2 * size.parameters


def test_an_objective_without_weights_is_refused():
    with pytest.raises(ValueError, match="at least one weight above 0"):
        ReleaseConfig(weights={"code": 0.0})
