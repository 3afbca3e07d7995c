"""The planning stages on real files: the same inputs give the same bytes, and refusals come before any measurement."""

from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.model.config import ModelConfig
from loopline.plan import stage
from loopline.plan.config import BudgetConfig, PlanConfig, RemixConfig
from loopline.store.artifact import Artifact, content_digest
from tests.support import make_artifact, make_context


def data(path: Path, **tokens: int) -> Artifact:
    sources = {name: {"weight": 1 / len(tokens), "train_tokens": count} for name, count in tokens.items()}
    write_json(path / "manifest.json", {"vocab_size": 1024, "sources": sources})
    return make_artifact(path, "data", "data")


def evaluations(path: Path, rows: list[dict]) -> Artifact:
    write_json(path / "summary.json", {"evaluations": rows})
    return make_artifact(path, "evaluate", "evaluation")


def bits(task: str, value: float, checkpoint: str = "pretrain") -> dict:
    return {"checkpoint": checkpoint, "task": task, "metric": "bits_per_byte", "value": value, "n": 9}


def test_a_plan_from_flops_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = data(tmp_path / "data", stories=900_000, arithmetic=700_000)
    config = PlanConfig(budget=BudgetConfig(flops=2e12), over_training=0.15)
    digests = set()
    for name in ("one", "two"):
        ctx = make_context(tmp_path / name)
        stage.plan(config, {"data": source}, ctx)
        digests.add(content_digest(ctx.out))
    assert len(digests) == 1
    plan = read_json(ctx.out / "plan.json")
    assert ModelConfig(**plan["model"]).vocab_size == 1024
    assert plan["budget"] == {"flops": 2e12, "given_in": "flops"}
    assert plan["epochs"]["stories"] < plan["epochs"]["arithmetic"]
    assert read_json(ctx.out / "log" / "speed.json")["tokens_per_second"] > 0


def test_a_budget_in_minutes_becomes_flops_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = data(tmp_path / "data", stories=10**12)
    config = PlanConfig(budget=BudgetConfig(minutes=5))
    ctx = make_context(tmp_path / "one")
    stage.plan(config, {"data": source}, ctx)
    plan = read_json(ctx.out / "plan.json")
    assert plan["budget"]["given_in"] == "minutes"
    assert f"{plan['budget']['flops']:.1e}" == f"{plan['budget']['flops']:.6e}".replace("00000e", "e")
    # What was measured survives a crash: a faster machine on resume changes nothing.
    monkeypatch.setattr(stage, "matmul_flops", lambda: 1e18)
    stage.plan(config, {"data": source}, make_context(tmp_path / "one"))
    assert read_json(ctx.out / "plan.json") == plan


def test_the_impossible_is_refused_before_any_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "training_tokens_per_second", lambda *args, **kwargs: pytest.fail("it measured"))
    ctx = make_context(tmp_path / "one")
    with pytest.raises(UserError, match="max_epochs"):
        stage.plan(PlanConfig(), {"data": data(tmp_path / "data", stories=10)}, ctx)
    assert not (ctx.out / "plan.json").exists()


def test_remix_moves_weight_to_what_is_weak(tmp_path: Path) -> None:
    source = data(tmp_path / "data", code=100_000, maths=100_000)
    rows = [bits("code", 1.0), bits("maths", 2.0), {**bits("code", 0.0), "value": None}]
    ctx = make_context(tmp_path / "one")
    stage.remix(RemixConfig(), {"data": source, "evaluations": evaluations(tmp_path / "evals", rows)}, ctx)
    found = read_json(ctx.out / "mixture.json")
    assert found["before"] == {"code": 0.5, "maths": 0.5}
    assert found["after"]["maths"] > 0.5 and sum(found["after"].values()) == pytest.approx(1)
    assert found["epochs"]["maths"] == pytest.approx(2 * found["after"]["maths"], abs=1e-3)
    assert len(found["reasons"]) == 2


def test_remix_asks_which_checkpoint_is_meant(tmp_path: Path) -> None:
    source = data(tmp_path / "data", code=100_000, maths=100_000)
    both = evaluations(tmp_path / "evals", [bits("code", 1.0, "a"), bits("maths", 2.0, "b"), bits("code", 3.0, "b")])
    with pytest.raises(UserError, match="evaluations of a, b"):
        stage.remix(RemixConfig(), {"data": source, "evaluations": both}, make_context(tmp_path / "one"))
    ctx = make_context(tmp_path / "two")
    stage.remix(RemixConfig(checkpoint="b"), {"data": source, "evaluations": both}, ctx)
    assert read_json(ctx.out / "mixture.json")["after"]["code"] > 0.5
