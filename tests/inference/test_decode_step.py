"""The compact step against the model's own forward, bit for bit; threads of its own."""

import pytest
import torch

from tests.support_model import tiny_model, tiny_tokenizer
from throughline.inference import scheduler
from throughline.inference.compact_step import CompactStep
from throughline.inference.decode_step import ModelStep, decode_step, is_plain, step_threads
from throughline.inference.engine import Sampling, TorchEngine
from throughline.inference.slots import Slots

KINDS = {
    "qwen3": {},
    "llama": {"qk_norm": False},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "biases": {"qk_norm": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "experts": {"experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_compact_step_equals_the_models_forward_bit_for_bit(kind, tmp_path, monkeypatch):
    engine = TorchEngine(tiny_model(3, **KINDS[kind]), tiny_tokenizer(tmp_path), batch_size=10)
    assert is_plain(engine.model)
    prompts = [[20 + i, 30, 40 + i][: 1 + i % 3] for i in range(7)]
    sampling = Sampling(30, n=3, stop_token_ids=tuple(range(10, 40)))
    compact = engine.generate(prompts, sampling)
    monkeypatch.setattr(scheduler, "decode_step", lambda model, slots: ModelStep(model))
    assert engine.generate(prompts, sampling) == compact


def test_other_types_and_classes_go_through_forward():
    model = tiny_model().to(torch.bfloat16)
    assert isinstance(decode_step(model, Slots(model, 2, 32)), ModelStep)
    plain = tiny_model()
    assert isinstance(decode_step(plain, Slots(plain, 2, 32)), CompactStep)


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
