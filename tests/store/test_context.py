"""Seeds, curves and heartbeats of a stage."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.store.context import Context, Metrics
from tests.support import make_context


def steps(metrics):
    return [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()]


@settings(max_examples=40)
@given(logged=st.integers(0, 6), cut=st.integers(0, 8), torn=st.integers(0, 40))
def test_a_resumed_run_writes_each_step_once_even_after_a_torn_line(tmp_path_factory, logged, cut, torn):
    metrics = Metrics(tmp_path_factory.mktemp("m") / "log" / "metrics.jsonl")
    for step in range(logged):
        metrics.log(step, loss=1.5)
    line = json.dumps({"step": logged, "größe": 2.0}, ensure_ascii=False).encode()
    with_tail = torn and logged
    if with_tail:
        with metrics.path.open("ab") as file:
            file.write(line[: min(torn, len(line) - 1)])
    metrics.truncate(cut)
    for step in range(min(cut, logged), 9):
        metrics.log(step, loss=1.0)
    assert steps(metrics) == list(range(9))


def test_a_line_torn_inside_a_letter_goes_too(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.log(0, loss=1.0)
    with metrics.path.open("ab") as file:
        file.write('{"step": 1, "ö'.encode()[:-1])
    metrics.truncate(5)
    metrics.log(1, loss=0.5)
    assert steps(metrics) == [0, 1]


def test_truncating_nothing_is_no_error(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.truncate(3)
    assert not metrics.path.exists()


def test_numbers_that_are_not_finite_are_null_in_the_curve(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.log(0, loss=math.nan, norm=math.inf, rate=0.5)
    assert json.loads(metrics.path.read_text()) == {"step": 0, "loss": None, "norm": None, "rate": 0.5}


def test_summaries_add_up(tmp_path):
    context = make_context(tmp_path)
    context.metrics.summary(loss=1.0, steps=3)
    context.metrics.summary(loss=0.5)
    assert context.metrics.values == {"loss": 0.5, "steps": 3}


@given(seed=st.integers(0, 2**31 - 1), name=st.text(max_size=8), other=st.text(max_size=8))
@settings(max_examples=50)
def test_every_name_has_a_seed_of_its_own(tmp_path_factory, seed, name, other):
    path = tmp_path_factory.getbasetemp() / "context"
    context, again = make_context(path, seed), make_context(path, seed)
    assert context.seed_for(name) == again.seed_for(name) < 2**63
    assert (context.seed_for(name) == context.seed_for(other)) == (name == other)
    assert context.seed_for(name) != make_context(path, seed + 1).seed_for(name)
    assert context.rng(name).integers(2**62) == again.rng(name).integers(2**62)


def test_generators_do_not_share_a_stream(tmp_path):
    context = make_context(tmp_path)
    first = context.rng("a").random(4).tolist()
    context.rng("b").random(100)
    assert context.rng("a").random(4).tolist() == first


def test_the_lease_is_renewed_by_progress_at_most_once_a_second(tmp_path, monkeypatch):
    now, beats = 50.0, []
    monkeypatch.setattr("loopline.store.context.time.monotonic", lambda: now)
    context = Context("x", tmp_path / "out", tmp_path / "state", 0, beat=lambda: beats.append(now))
    with context.progress("counting", 100) as bar:
        for _ in range(100):
            now += 0.1
            bar.advance()
    assert 9 <= len(beats) <= 10
    assert all(late - early >= 1 for early, late in zip(beats, beats[1:], strict=False))


def test_a_failing_heartbeat_stops_the_stage(tmp_path):
    def refuse():
        raise RuntimeError("the lease was lost")

    context = Context("x", tmp_path / "out", tmp_path / "state", 0, beat=refuse)
    with pytest.raises(RuntimeError, match="lease was lost"), context.progress("counting", 2) as bar:
        bar.advance()
