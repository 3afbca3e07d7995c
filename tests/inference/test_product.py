"""Blocked weights: the same products up to rounding, and never those of weights that are gone."""

import pytest
import torch

from tests.support_model import tiny_model, tiny_tokenizer
from throughline.inference import decode_step
from throughline.inference.compact_step import CompactStep
from throughline.inference.completion import Request
from throughline.inference.engine import Sampling, TorchEngine
from throughline.inference.product import Weight, can_block
from throughline.inference.scheduler import Scheduler

pytestmark = pytest.mark.skipif(not can_block(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_products_are_those_of_the_layer(rows, bias):
    layer = torch.nn.Linear(48, 90, bias=bias)
    x, out = torch.randn(rows, 48), torch.empty(rows, 90)
    with torch.inference_mode():
        for blocked in (False, True):
            Weight(layer.weight, layer.bias, blocked).multiply(x, out.fill_(torch.nan))
            torch.testing.assert_close(out, layer(x), atol=1e-5, rtol=1e-5)


def test_changed_weights_are_noticed_however_they_changed():
    layer = torch.nn.Linear(40, 64, bias=False)
    x, out = torch.randn(3, 40), torch.empty(3, 64)
    weight = Weight(layer.weight, None, blocked=True)

    def same():
        with torch.inference_mode():
            weight.multiply(x, out)
            torch.testing.assert_close(out, layer(x), atol=1e-5, rtol=1e-5)

    same()
    layer(x).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()
    same()
    layer.load_state_dict({"weight": torch.randn(64, 40)})
    same()
    with torch.no_grad():
        layer.weight.mul_(2)
    same()


def test_an_engine_samples_alike_and_follows_new_weights_in_the_middle(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(tmp_path)
    other = tiny_model(8).state_dict()

    def run():
        engine = TorchEngine(tiny_model(3), tokenizer)
        scheduler = Scheduler(engine, 4)
        for key, prompt in enumerate([[20, 21, 22], [30, 31]]):
            scheduler.add(key, Request(prompt, Sampling(12, n=3, stop_token_ids=())))
        done, steps = [], 0
        while scheduler.busy:
            done += [(key, c.number, c.token_ids, c.policy_versions, c.logprobs) for key, c in scheduler.step()]
            steps += 1
            if steps == 5:
                engine.load(other, 1)
        assert type(scheduler.compute) is CompactStep and scheduler.compute.blocked == (decode_step.SMALL == 0)
        return sorted(done)

    expected = run()
    monkeypatch.setattr(decode_step, "SMALL", 0)
    for plain, blocked in zip(expected, run(), strict=True):
        assert plain[:-1] == blocked[:-1] and set(plain[3]) >= {1}
        assert plain[-1] == pytest.approx(blocked[-1], abs=1e-5)
