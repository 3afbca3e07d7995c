"""Lanes: what is sampled does not depend on them, errors arrive, and nothing goes on afterwards."""

import threading

import pytest
import torch

from tests.support_model import tiny_model, tiny_tokenizer
from throughline.compute.threads import can_own_threads
from throughline.inference import lanes
from throughline.inference.completion import Request
from throughline.inference.engine import Sampling, TorchEngine
from throughline.inference.scheduler import Scheduler

PROMPTS = [[5 + number % 7, 9, 11 + number] for number in range(64)]


@pytest.fixture
def engine(tmp_path):
    return TorchEngine(tiny_model(0).eval(), tiny_tokenizer(tmp_path), batch_size=96)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def lane_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lanes")]


def test_lanes_sample_what_one_batch_samples(engine, two_threads, monkeypatch):
    sampling = Sampling(n=4, temperature=1.0, max_new_tokens=12, seed=3)
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "lane_count", lambda *_: 1)
        alone = engine.generate(PROMPTS, sampling)
    if can_own_threads():
        assert lanes.lane_count(engine.model, 96, 256) == 2
    together = engine.generate(PROMPTS, sampling, progress=seen.append)
    assert len(seen) == len(PROMPTS)
    for group, other in zip(alone, together, strict=True):
        assert [item.token_ids for item in group] == [item.token_ids for item in other]
        for item, twin in zip(group, other, strict=True):
            torch.testing.assert_close(torch.tensor(item.logprobs), torch.tensor(twin.logprobs), rtol=1e-4, atol=1e-5)
    assert not lane_threads()


@pytest.mark.parametrize(
    ("slots", "samples", "threads", "expected"),
    [
        (63, 1000, 2, 1),
        (64, 1000, 2, 2),
        (256, 255, 2, 1),
        (256, 256, 2, 2),
        (1000, 1000, 1, 1),
        (1000, 1000, 16, lanes.MOST),
    ],
)
def test_lanes_need_rows_samples_and_threads(engine, slots, samples, threads, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(lanes, "can_own_threads", lambda: True)
    assert lanes.lane_count(engine.model, slots, samples) == expected


def test_a_model_with_long_operations_has_one_lane(engine, two_threads, monkeypatch):
    monkeypatch.setattr(lanes, "small", lambda model: False)
    assert lanes.lane_count(engine.model, 1000, 1000) == 1


def test_an_error_in_a_lane_is_raised_and_ends_the_others(engine, two_threads, monkeypatch):
    monkeypatch.setattr(lanes, "lane_count", lambda *_: 2)
    step, steps = Scheduler.step, []

    def breaking(self):
        steps.append(1)
        if len(steps) == 7:
            raise RuntimeError("a broken lane")
        return step(self)

    monkeypatch.setattr(Scheduler, "step", breaking)
    with pytest.raises(RuntimeError, match="a broken lane"):
        engine.generate(PROMPTS, Sampling(n=4, max_new_tokens=400, temperature=1.0))
    assert len(steps) < 20 and not lane_threads()


def test_closing_ends_the_lanes(engine, two_threads, monkeypatch):
    monkeypatch.setattr(lanes, "lane_count", lambda *_: 2)
    sampling = Sampling(n=4, max_new_tokens=40, temperature=1.0)
    found = lanes.completions(engine, [(n, Request(prompt, sampling, n)) for n, prompt in enumerate(PROMPTS)], 8)
    next(found)
    found.close()
    assert not lane_threads()
