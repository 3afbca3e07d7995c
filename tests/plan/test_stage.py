"""The planning stages on real files: the same inputs give the same bytes, and refusals come before any measurement."""

from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json, write_jsonl
from loopline.model.config import ModelConfig
from loopline.plan import stage
from loopline.plan.config import BudgetConfig, PlanConfig, RemixConfig
from loopline.store.artifact import Artifact, content_digest
from tests.support import make_artifact, make_context


def data(path: Path, **tokens: int) -> Artifact:
    sources = {name: {"weight": 1 / len(tokens), "train_tokens": count} for name, count in tokens.items()}
    write_json(path / "manifest.json", {"vocab_size": 1024, "sources": sources})
    return make_artifact(path, "data", "data")


def evaluations(path: Path, rows: list[dict], **bits: tuple[float, float]) -> Artifact:
    """An evaluation with these rows; `bits` are bits per byte of each source's development and held-out windows."""
    write_json(path / "summary.json", {"evaluations": rows})
    windows = [
        {"source": source, "window": number, "bits": 10 * values[number % 2], "bytes": 10}
        for source, values in bits.items()
        for number in range(4)
    ]
    write_jsonl(path / "bpb.jsonl", windows)
    return make_artifact(path, "evaluate", "evaluation")


def score(task: str, value: float | None, checkpoint: str = "pretrain", part: str = "dev") -> dict:
    row = {"checkpoint": checkpoint, "task": task, "metric": "sampled pass@1", "part": part}
    return {**row, "value": value, "n": 9}


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
    config = PlanConfig(budget=BudgetConfig(minutes=5), over_training=0.01)
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


def test_remix_moves_weight_to_what_is_weak_on_development_windows(tmp_path: Path) -> None:
    source = data(tmp_path / "data", code=100_000, maths=100_000)
    # Held out it is the other way round, which must not steer.
    measured = evaluations(tmp_path / "evals", [score("sums", 0.5)], code=(1.0, 9.0), maths=(2.0, 0.5))
    ctx = make_context(tmp_path / "one")
    stage.remix(RemixConfig(), {"data": source, "evaluations": measured}, ctx)
    found = read_json(ctx.out / "mixture.json")
    assert found["before"] == {"code": 0.5, "maths": 0.5}
    assert found["after"]["maths"] > 0.5 and sum(found["after"].values()) == pytest.approx(1)
    assert found["epochs"]["maths"] == pytest.approx(2 * found["after"]["maths"], abs=1e-3)
    assert len(found["reasons"]) == 2 and "2.000 bits per byte" in found["reasons"][1]


def test_remix_reads_the_scores_of_what_a_source_covers(tmp_path: Path) -> None:
    source = data(tmp_path / "data", code=100_000, maths=100_000)
    rows = [score("sums", 0.1), score("sums", 0.9, part="heldout"), score("code", 0.6), score("poems", None)]
    ctx = make_context(tmp_path / "one")
    config = RemixConfig(covers={"maths": ["sums"]})
    stage.remix(config, {"data": source, "evaluations": evaluations(tmp_path / "evals", rows)}, ctx)
    assert read_json(ctx.out / "mixture.json")["after"]["maths"] > 0.5


def test_remix_asks_which_checkpoint_is_meant(tmp_path: Path) -> None:
    source = data(tmp_path / "data", code=100_000, maths=100_000)
    rows = [score("maths", 0.9, "a"), score("code", 0.5, "a"), score("maths", 0.5, "b"), score("code", 0.1, "b")]
    both = evaluations(tmp_path / "evals", rows)
    with pytest.raises(UserError, match="evaluations of a, b"):
        stage.remix(RemixConfig(), {"data": source, "evaluations": both}, make_context(tmp_path / "one"))
    ctx = make_context(tmp_path / "two")
    stage.remix(RemixConfig(checkpoint="b"), {"data": source, "evaluations": both}, ctx)
    assert read_json(ctx.out / "mixture.json")["after"]["code"] > 0.5
