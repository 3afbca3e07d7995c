"""Steps on a device against those here; threads of small models."""

import pytest
import torch

from loopline.inference.decode_step import step_threads
from loopline.inference.engine import Sampling, TorchEngine
from tests.support_model import tiny_model, tiny_tokenizer


def test_small_models_step_on_one_thread():
    assert step_threads(tiny_model()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_steps_give_what_the_processor_gives(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    prompts = [[20 + i, 30] for i in range(5)]
    sampling = Sampling(20, temperature=0, n=2, stop_token_ids=())
    here = TorchEngine(tiny_model(3), tokenizer, 4).generate(prompts, sampling)
    there = TorchEngine(tiny_model(3).cuda(), tokenizer, 4).generate(prompts, sampling)
    for mine, theirs in zip(here, there, strict=True):
        assert [c.token_ids for c in mine] == [c.token_ids for c in theirs]
