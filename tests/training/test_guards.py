"""Guards and what the loop does with their decisions: skip, rewind past bad data, stop with the fix."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.training.config import GuardConfig, OptimizerConfig, TrainingConfig, TrainRuntime
from loopline.training.guards import Decision, NonFiniteGuard, SpikeGuard, worst
from loopline.training.loop import train
from loopline.training.objectives import NextToken
from loopline.training.sources import ExampleSource
from tests.support import make_context
from tests.support_model import tiny_model
from tests.training.test_loop import Killed, random_examples

SHORT = GuardConfig(spike_minimum=8, spike_window=16, patience=3)


def feed(guard, losses):
    return [guard.check(step, {"loss": loss, "gradient_norm": 1.0}) for step, loss in enumerate(losses)]


@given(st.lists(st.floats(0.9, 1.1), min_size=40, max_size=60))
def test_the_wobble_of_a_curve_is_no_spike(losses):
    assert feed(SpikeGuard(SHORT), losses) == [None] * len(losses)


@given(level=st.floats(0.01, 100), factor=st.floats(2.1, 1e6))
def test_a_spike_is_skipped_a_row_of_them_rewinds_and_history_stays_clean(level, factor):
    guard = SpikeGuard(SHORT)
    assert feed(guard, [level] * 8) == [None] * 8
    found = feed(guard, [level * factor] * 3)
    assert [decision.action for decision in found] == ["skip", "skip", "rewind"]
    assert feed(guard, [level]) == [None] and feed(guard, [level * factor])[0].action == "skip"


def test_nothing_is_a_spike_before_there_is_a_history():
    assert feed(SpikeGuard(SHORT), [1.0] * 7 + [1000.0]) == [None] * 8


def test_a_guard_restored_decides_as_one_that_went_on():
    losses = [1.0] * 12 + [9.0, 9.0]
    whole, first, second = SpikeGuard(SHORT), SpikeGuard(SHORT), SpikeGuard(SHORT)
    feed(whole, losses)
    feed(first, losses)
    second.load_state_dict(first.state_dict())
    assert feed(second, [9.0]) == feed(whole, [9.0]) != [None]


@pytest.mark.parametrize("metrics", [{"loss": math.nan}, {"loss": 1.0, "gradient_norm": math.inf}])
def test_numbers_that_are_not_finite_are_skipped_then_rewound(metrics):
    guard = NonFiniteGuard(SHORT)
    actions = [guard.check(step, metrics).action for step in range(3)]
    assert actions == ["skip", "skip", "rewind"]
    assert guard.check(3, {"loss": 1.0, "gradient_norm": 1.0}) is None
    assert guard.check(4, metrics).action == "skip"


def test_the_worst_decision_counts():
    skip, stop = Decision("skip", "a"), Decision("stop", "b")
    assert worst([skip, stop, Decision("warn", "c")]) == stop and worst([]) is None


class Poisoned(ExampleSource):
    """Data that is bad at some steps: weights so large that the loss is not finite."""

    poison = frozenset()
    cut = None

    def next(self, step):
        if step == self.cut:
            raise Killed
        batches = super().next(step)
        if step in self.poison:
            for batch in batches:
                batch.weights_BT.mul_(torch.inf)
        return batches


class Remapped(ExampleSource):
    """Step k of training draws the k-th of `order`."""

    order = ()

    def next(self, step):
        return super().next(self.order[step])


CONFIG = TrainingConfig(optimizer=OptimizerConfig(learning_rate=3e-3), runtime=TrainRuntime(save_every=3))


def run(folder, kind, steps=18, cuts=(), config=CONFIG, **settings):
    examples = random_examples(20, count=30)
    ctx = make_context(folder)
    for cut in [*cuts, None]:
        model, source = tiny_model(0), kind(examples, 6, 40, 2, seed=5)
        for name, value in settings.items():
            setattr(source, name, value)
        source.cut = cut
        try:
            train(model, NextToken(), source, steps, config, ctx)
        except Killed:
            continue
        return model, ctx
    raise AssertionError


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_rewound_run_equals_one_that_never_saw_the_bad_data(tmp_path):
    bad, ctx = run(tmp_path / "a", Poisoned, poison={13, 14, 15})
    clean, _ = run(tmp_path / "b", Remapped, order=[*range(12), *range(16, 30)])
    assert equal(bad, clean)
    rows = read_jsonl(ctx.out / "log" / "guards.jsonl")
    assert [(row["data_step"], row["action"]) for row in rows] == [(13, "skip"), (14, "skip"), (15, "rewind")]
    assert all("not finite" in row["reason"] for row in rows)
    steps = [row["step"] for row in read_jsonl(ctx.out / "log" / "metrics.jsonl")]
    assert steps == list(range(18))


@pytest.mark.parametrize("cuts", [[2, 14], [13, 16], [15, 17, 20]])
def test_a_rewound_run_that_is_killed_too_ends_in_the_same_bytes(tmp_path, cuts):
    whole, one = run(tmp_path / "a", Poisoned, poison={4, 13, 14, 15})
    again, other = run(tmp_path / "b", Poisoned, poison={4, 13, 14, 15}, cuts=cuts)
    assert equal(whole, again)
    logs = [read_jsonl(ctx.out / "log" / "guards.jsonl") for ctx in (one, other)]
    assert logs[0] == logs[1]


def test_a_single_bad_step_is_skipped_and_the_run_goes_on(tmp_path):
    model, ctx = run(tmp_path, Poisoned, poison={7})
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    (row,) = read_jsonl(ctx.out / "log" / "guards.jsonl")
    assert (row["step"], row["action"], row["rewinds"]) == (7, "skip", 0)


def test_a_run_that_stays_bad_stops_and_names_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"step \d+: .*not finite.*learning_rate"):
        run(tmp_path / "a", Poisoned, poison=set(range(9, 60)))
    with pytest.raises(UserError, match="learning_rate"):
        run(tmp_path / "b", Poisoned, poison={0, 1, 2})


class WarnsThenStops:
    """A guard from outside that warns at step 2 and stops at step 4."""

    def check(self, step, metrics):
        assert "gradient_norm" in metrics
        return {2: Decision("warn", "look"), 4: Decision("stop", "enough", "train less")}.get(step)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        del state


def test_guards_from_outside_are_heard(tmp_path):
    ctx = make_context(tmp_path)
    source = ExampleSource(random_examples(20, count=30), 6, 40, 2, seed=5)
    with pytest.raises(UserError, match=r"step 4: enough.*train less"):
        train(tiny_model(0), NextToken(), source, 9, CONFIG, ctx, guards=[WarnsThenStops()])
    rows = read_jsonl(ctx.out / "log" / "guards.jsonl")
    assert [(row["step"], row["action"]) for row in rows] == [(2, "warn"), (4, "stop")]
