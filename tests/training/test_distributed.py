"""Two real processes end with the gradient of one, whatever the split and the normalizer."""

import sys

import pytest
import torch
import torch.multiprocessing as multiprocessing

from loopline.rl.objective import GRPO
from loopline.training.batch import build_batch
from loopline.training.loop import accumulate
from loopline.training.objectives import DPO, NextToken
from tests.support_model import tiny_model
from tests.training.test_loop import random_examples

OBJECTIVES = {"next token": NextToken(), "grpo": GRPO(0.2, 0.3, 0.8), "dpo": DPO(0.3, sft_weight=0.1)}


def micro_batches(count):
    examples = random_examples(3, count=8, extras=True)
    size = 8 // count
    rows = [examples[start : start + size] for start in range(0, 8, size)]
    return [build_batch([[item] for item in row] if size == 1 else [row]) for row in rows]


def gradient(objective, batches):
    model = tiny_model(1)
    normalizer, metrics = accumulate(model, objective, batches)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]), normalizer, metrics["loss"]


def work(rank, size, folder, name, count):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    torch.save(gradient(OBJECTIVES[name], micro_batches(count)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets through a file")
@pytest.mark.parametrize(("name", "count"), [("next token", 4), ("grpo", 4), ("dpo", 4), ("next token", 1)])
def test_the_gradient_does_not_depend_on_the_number_of_processes(tmp_path, name, count):
    """With one micro-batch the second process has none, and must neither wait nor dilute."""
    multiprocessing.spawn(work, (2, str(tmp_path), name, count), nprocs=2)
    alone, normalizer, loss = gradient(OBJECTIVES[name], micro_batches(count))
    for rank in range(2):
        grad, total, value = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(grad, alone, atol=2e-6, rtol=2e-4)
        assert total == pytest.approx(normalizer) and value == pytest.approx(loss, rel=1e-5)
