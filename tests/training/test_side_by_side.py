"""Micro-batches on threads of their own: the same gradients, the same bytes with any number of threads, errors told."""

import threading

import pytest
import torch

from loopline.model.adapter_config import LoRAConfig
from loopline.model.checkpoint import save_checkpoint
from loopline.training.batch import Example, pack
from loopline.training.loop import accumulate
from loopline.training.objectives import NextToken
from loopline.training.policy import load_policy
from loopline.training.side_by_side import in_order, possible
from tests.support_model import tiny_model, tiny_tokenizer


def batches(count=24, rows=2):
    rng = torch.Generator().manual_seed(3)
    sizes = torch.randint(5, 40, (count,), generator=rng).tolist()
    examples = [Example(torch.randint(10, 300, (n,), generator=rng).tolist(), [1.0] * n) for n in sizes]
    return pack(examples, 64, rows)


def gradients(model, divide, threads, made):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model.zero_grad(set_to_none=True)
        found = accumulate(model, NextToken(), made, divide=divide)
    finally:
        torch.set_num_threads(before)
    return [parameter.grad.clone() for parameter in model.parameters()], found


def test_gradient_and_metrics_are_those_of_one_after_the_other():
    made = batches()
    model = tiny_model(2).train()
    assert len(made) > 4 and possible(model, made)
    expected, (count, values) = gradients(model, "operations", 1, made)
    found, (other_count, other) = gradients(model, "batches", 2, made)
    assert other_count == count and other == pytest.approx(values)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_any_number_of_threads_gives_the_same_bytes():
    made, model = batches(), tiny_model(2).train()
    runs = [gradients(model, "batches", threads, made)[0] for threads in (1, 2, 3, 2, 5)]
    for run in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(run, runs[0], strict=True))


def test_frozen_parameters_get_no_gradient_and_unused_ones_none():
    made, model = batches(), tiny_model(2).train()
    model.embedding.weight.requires_grad_(False)
    model.register_parameter("spare", torch.nn.Parameter(torch.ones(2)))
    accumulate(model, NextToken(), made, divide="batches")
    assert model.embedding.weight.grad is None and model.spare.grad is None
    assert model.norm.weight.grad is not None


class Twins(NextToken):
    """Adds up two parameters, so that both get the same gradient."""

    def loss(self, model, batch):
        total, count, values = super().loss(model, batch)
        return total + (model.one + model.two).sum(), count, values


def test_a_gradient_that_two_parameters_share_is_added_to_each_once():
    made, model = batches(), tiny_model(2).train()
    for name in ("one", "two"):
        model.register_parameter(name, torch.nn.Parameter(torch.ones(2)))
    count, _ = accumulate(model, Twins(), made, divide="batches")
    expected = torch.full((2,), len(made) / count)
    torch.testing.assert_close(model.one.grad, expected)
    torch.testing.assert_close(model.two.grad, expected)


def test_an_adapter_on_a_stock_model_is_trained_alike(tmp_path):
    pytest.importorskip("peft")
    tiny_tokenizer(tmp_path / "tokenizer")
    save_checkpoint(tiny_model(2), tmp_path / "tokenizer", tmp_path)
    made, found = batches(), []
    for divide in ("operations", "batches"):
        model = load_policy(tmp_path, LoRAConfig(rank=2)).train()
        accumulate(model, NextToken(), made, divide=divide)
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(found[0]) > 4
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


class Failing(NextToken):
    """Fails on its third micro-batch, and knows when it is at work."""

    def __init__(self):
        super().__init__()
        self.lock, self.calls, self.working = threading.Lock(), 0, 0

    def loss(self, model, batch):
        with self.lock:
            self.calls += 1
            number = self.calls
            self.working += 1
        try:
            if number == 3:
                raise FloatingPointError("the third")
            return super().loss(model, batch)
        finally:
            with self.lock:
                self.working -= 1


def test_an_error_is_raised_and_leaves_nothing_running():
    made, model, objective = batches(40, 1), tiny_model(2).train(), Failing()
    with pytest.raises(FloatingPointError, match="the third"):
        list(in_order(model, objective, made, "float32", 2))
    assert objective.working == 0 and objective.calls < len(made)


def test_one_micro_batch_or_another_device_is_not_divided():
    model = tiny_model(2)
    assert not possible(model, batches()[:1])
    assert not possible(model.to("meta"), batches())
