"""Trackers get a copy of the curve: TensorBoard's own reader, and stand-ins that record what the others are told."""

import sys
import types

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.pipeline import run_line
from loopline.recipe import parse_recipe
from loopline.store.trackers import require, tracked
from tests.support_line import NUMBERS_KINDS, numbers_raw


def test_tensorboard_reads_what_a_run_logged(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    raw = {"track": ["tensorboard"], "compute": {"threads": 1}, **numbers_raw()}
    done = run_line(parse_recipe(raw, "tracked.yaml", kinds=NUMBERS_KINDS), tmp_path)
    accumulator = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / "walk"))
    accumulator.Reload()
    events = [(event.step, event.value) for event in accumulator.Scalars("sum")]
    rows = read_jsonl(done["walk"] / "log" / "metrics.jsonl")
    assert [step for step, _ in events] == [row["step"] for row in rows] and len(rows) == 20
    assert [value for _, value in events] == pytest.approx([row["sum"] for row in rows])


class Recorder(types.ModuleType):
    """A module that notes every call."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **settings):
            self.calls.append((name, arguments, settings))
            return self

        return call

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append(("end", (), {}))


@pytest.mark.parametrize(
    ("name", "logged", "last"),
    [
        ("wandb", ("log", ({"loss": 1.5},), {"step": 3}), "finish"),
        ("mlflow", ("log_metrics", ({"loss": 1.5},), {"step": 3}), "end"),
        ("trackio", ("log", ({"step": 3, "loss": 1.5},), {}), "finish"),
    ],
)
def test_other_trackers_are_told_step_and_numbers_and_closed_even_after_an_error(
    monkeypatch, tmp_path, name, logged, last
):
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)

    def stage():
        with tracked([name], tmp_path, "run", "grpo") as sinks:
            sinks[0](3, {"loss": 1.5})
            raise RuntimeError("the stage failed")

    with pytest.raises(RuntimeError):
        stage()
    assert logged in module.calls and module.calls[-1][0] == last


def test_a_missing_package_is_refused_before_compute(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="track names wandb, and its package is not installed.*pip install wandb"):
        require(["wandb"])
