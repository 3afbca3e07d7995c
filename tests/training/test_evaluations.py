"""Evaluations during training: the best weights are kept, a run without progress stops, a killed one goes on."""

import copy

import pytest
import torch

from loopline.base.files import read_json, read_jsonl
from loopline.training import loop
from loopline.training.batch import Example
from loopline.training.config import DevelopmentConfig, TrainingConfig, TrainRuntime
from loopline.training.evaluations import Evaluations
from loopline.training.objectives import NextToken
from loopline.training.sources import ExampleSource
from tests.support import make_context
from tests.support_model import tiny_model
from tests.support_stages import Killed, cut_off

PEAK = [0.1, 0.5, 0.3, 0.5, 0.2, 0.6]
"""Scores by how often was measured."""


def flat(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def run(path, config, scores=PEAK, steps=12, save_every=5):
    """Train, measured by given scores; the final weights, the weights at each measurement, the context."""
    model, seen = tiny_model(1), {}
    evaluations = None

    def measure():
        number = len(evaluations.history)
        seen[number] = copy.deepcopy(flat(model))
        return {"score": scores[number]}

    context = make_context(path, seed=3)
    evaluations = Evaluations(config, measure, context.state / "best")
    examples = [Example([10 + n, 20, 30 + n, 40], [1.0] * 4) for n in range(8)]
    source = ExampleSource(examples, 4, 64, 2, 7)
    settings = TrainingConfig(runtime=TrainRuntime(save_every=save_every))
    loop.train(model, NextToken(), source, steps, settings, context, evaluations=evaluations)
    return flat(model), seen, context


def test_the_run_ends_with_the_first_of_the_best_weights(tmp_path):
    weights, seen, context = run(tmp_path, DevelopmentConfig(every=2), PEAK[:5] + [0.5])
    found = read_json(context.out / "development.json")
    assert [row["step"] for row in found["measured"]] == [2, 4, 6, 8, 10, 12]
    assert found["best"] == {"step": 4, "score": 0.5} and torch.equal(weights, seen[1])
    assert not torch.equal(seen[1], seen[5])
    logged = [row for row in read_jsonl(context.out / "log" / "metrics.jsonl") if "development/score" in row]
    assert [(row["step"], row["development/score"]) for row in logged][:2] == [(1, 0.1), (3, 0.5)]
    assert context.metrics.values["development_score"] == 0.5


def test_the_last_step_is_measured_whatever_every_says(tmp_path):
    weights, seen, context = run(tmp_path, DevelopmentConfig(every=5))
    assert [row["step"] for row in read_json(context.out / "development.json")["measured"]] == [5, 10, 12]
    assert torch.equal(weights, seen[1])


@pytest.mark.parametrize(("patience", "measured"), [(1, 3), (2, 4), (3, 5), (4, 6), (None, 6)])
def test_a_run_that_gets_no_better_stops(tmp_path, patience, measured):
    config = DevelopmentConfig(every=2, patience=patience)
    weights, seen, context = run(tmp_path, config)
    rows = read_json(context.out / "development.json")
    assert len(rows["measured"]) == measured
    assert torch.equal(weights, seen[5 if measured == 6 else 1])
    assert len(read_jsonl(context.out / "log" / "metrics.jsonl")) == 2 * measured


@pytest.mark.parametrize("save_every", [1, 3, 100])
@pytest.mark.parametrize(("target", "name"), [(loop, "accumulate"), (Evaluations, "after")])
@pytest.mark.parametrize("after", [1, 4, 5, 7, 9])
def test_a_killed_run_ends_in_the_same_weights(tmp_path, save_every, target, name, after):
    config = DevelopmentConfig(every=2, patience=4)
    whole, _, first = run(tmp_path / "whole", config, save_every=save_every)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, target, name, after)
        with pytest.raises(Killed):
            run(tmp_path / "torn", config, save_every=save_every)
    torn, _, second = run(tmp_path / "torn", config, save_every=save_every)
    assert torch.equal(torn, whole)
    assert read_json(second.out / "development.json") == read_json(first.out / "development.json")
    assert len(list((second.state / "best").iterdir())) == 1, "weights that nothing refers to are deleted"
