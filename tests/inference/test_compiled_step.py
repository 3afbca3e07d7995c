"""The compiled step: the model's own scores up to rounding, the same bits in any company, and never old weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.compute.team import Team
from loopline.inference import compiled_step, scheduler
from loopline.inference.compiled_step import CompiledStep
from loopline.inference.completion import Request
from loopline.inference.decode_step import decode_step, is_plain
from loopline.inference.engine import Sampling, TorchEngine
from loopline.inference.model_step import ModelStep
from loopline.inference.scheduler import Scheduler
from loopline.inference.slots import Slots
from tests.support_model import tiny_model, tiny_tokenizer

KINDS = {
    "qwen3": {},
    "llama": {"qk_norm": False},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "biases": {"qk_norm": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "experts": {"experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}},
    "mixed": {
        "num_hidden_layers": 4,
        "experts": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 2,
        },
    },
}
PROMPTS = [[20 + i, 30, 40 + i, 50, 60 + i, 70][: 1 + i % 6] for i in range(9)]


def kind_of(kind, seed=3):
    model = tiny_model(seed, **KINDS[kind])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def stepped(step, model, prompts, steps=5):
    """Scores after the prompts and after each of some more tokens, and the cache at the end."""
    slots = Slots(model, len(prompts), 40)
    with torch.inference_mode():
        cache, logits = step.prefill(prompts)
        slots.seat(range(len(prompts)), cache, range(len(prompts)), logits)
        slots.running = len(prompts)
        slots.at[: slots.running] = [len(prompt) for prompt in prompts]
        found = [logits]
        for number in range(steps):
            slots.tokens[: slots.running] = [(7 * sum(prompt) + number) % 300 for prompt in prompts]
            step(slots)
            found.append(slots.logits[: slots.running].clone())
            slots.at[: slots.running] += 1
    return torch.stack(found), slots.cache


@pytest.mark.parametrize("kind", KINDS)
def test_its_scores_are_those_of_the_models_forward(kind):
    model = kind_of(kind)
    found, cache = stepped(CompiledStep(model, 9, Team(2)), model, PROMPTS)
    expected, other = stepped(ModelStep(model), model, PROMPTS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for row, prompt in enumerate(PROMPTS):
        for mine, theirs in ((cache.keys, other.keys), (cache.values, other.values)):
            end = len(prompt) + 5
            torch.testing.assert_close(mine[:, row, :, :end], theirs[:, row, :, :end], atol=2e-5, rtol=1e-5)


@settings(max_examples=12)
@given(rows=st.sets(st.integers(0, 8), min_size=1), threads=st.integers(1, 3), chunk=st.integers(1, 9))
def test_a_rows_bits_depend_neither_on_other_rows_nor_on_threads(rows, threads, chunk):
    model = kind_of("qwen3")
    together, _ = stepped(CompiledStep(model, 9, Team(1)), model, PROMPTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_step, "THREAD_WORK", 1)
        patch.setattr(compiled_step, "CHUNK", chunk)
        part, _ = stepped(CompiledStep(model, 9, Team(threads)), model, [PROMPTS[row] for row in sorted(rows)])
    assert part.numpy().tobytes() == together[:, sorted(rows)].numpy().tobytes()


def test_a_prompt_computed_at_once_or_a_token_at_a_time_is_the_same_bits():
    model = kind_of("qwen3")
    step, prompt = CompiledStep(model, 1, Team(2)), [20, 30, 40, 50, 60, 70, 80, 90, 100]
    with torch.inference_mode():
        whole, scores = step.prefill([prompt])
        cache, logits = step.prefill([prompt[:1]])
        slots = Slots(model, 1, 16)
        slots.seat([0], cache, [0], logits)
        slots.running = 1
        for place, token in enumerate(prompt[1:], 1):
            slots.at[0], slots.tokens[0] = place, token
            step(slots)
    assert slots.logits[:1].equal(scores)
    assert slots.cache.keys[:, 0, :, : len(prompt)].equal(whole.keys[:, 0, :, : len(prompt)])


@pytest.mark.parametrize("kind", ["qwen3", "experts"])
def test_an_engine_samples_what_it_samples_through_forward(kind, tmp_path, monkeypatch):
    engine = TorchEngine(kind_of(kind), tiny_tokenizer(tmp_path), batch_size=10)
    assert is_plain(engine.model)
    sampling = Sampling(30, n=3, stop_token_ids=tuple(range(10, 40)))
    compiled = engine.generate(PROMPTS, sampling)
    monkeypatch.setattr(scheduler, "decode_step", lambda model, rows, team: ModelStep(model))
    for group, other in zip(compiled, engine.generate(PROMPTS, sampling), strict=True):
        for mine, theirs in zip(group, other, strict=True):
            assert (mine.token_ids, mine.finish) == (theirs.token_ids, theirs.finish)
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_changed_weights_are_noticed_however_they_changed():
    model = tiny_model(3)
    step = CompiledStep(model, 9, Team(1))

    def same():
        torch.testing.assert_close(
            stepped(step, model, PROMPTS, 1)[0], stepped(ModelStep(model), model, PROMPTS, 1)[0], atol=2e-5, rtol=1e-5
        )

    same()
    model.logits(model(torch.tensor([PROMPTS[5]]))).square().mean().backward()
    torch.optim.AdamW(model.parameters(), lr=0.05).step()
    same()
    model.load_state_dict(tiny_model(8).state_dict())
    same()
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight.mul_(2)
    same()


def test_weights_that_do_not_count_their_changes_are_followed_too():
    with torch.inference_mode():
        model = tiny_model(3)
        step = CompiledStep(model, 9, Team(1))
        before, _ = stepped(step, model, PROMPTS, 1)
        model.blocks[1].feed_forward.down.weight.mul_(2)
        after, _ = stepped(step, model, PROMPTS, 1)
        expected, _ = stepped(ModelStep(model), model, PROMPTS, 1)
    assert not before.equal(after)
    torch.testing.assert_close(after, expected, atol=2e-5, rtol=1e-5)


def test_a_process_that_compiles_and_one_that_loads_compute_the_same_bits(tmp_path):
    program = """
import sys
import torch
from tests.support_model import tiny_model
from tests.inference.test_compiled_step import PROMPTS, stepped
from loopline.compute.team import Team
from loopline.inference.compiled_step import CompiledStep
from loopline.inference.sampling import Sampling, Scratch, draw
model = tiny_model(3)
with torch.no_grad():
    for number, parameter in enumerate(model.parameters()):
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
scores, cache = stepped(CompiledStep(model, 9, Team(1)), model, PROMPTS, 20)
uniforms = torch.linspace(0, 0.99, 21 * 9, dtype=torch.float64)
chosen = draw(scores.flatten(0, 1), Sampling(1, temperature=0.7), uniforms, Scratch(300))
torch.save([scores, cache.keys, cache.values, chosen.tokens_B, chosen.logprobs_B], sys.argv[1])
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    for name in ("compiles.pt", "loads.pt"):
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2])
        assert list((tmp_path / "compiled").rglob("*.nbc"))
    first, second = (torch.load(tmp_path / name) for name in ("compiles.pt", "loads.pt"))
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_an_engine_follows_new_weights_in_the_middle(tmp_path):
    engine = TorchEngine(tiny_model(3), tiny_tokenizer(tmp_path))
    running = Scheduler(engine, 4)
    running.add(0, Request([20, 21, 22], Sampling(12, n=3, stop_token_ids=())))
    for _ in range(5):
        running.step()
    engine.load(tiny_model(8).state_dict(), 1)
    assert type(running.compute) is CompiledStep
    at, tokens = running.slots.at.copy(), running.slots.tokens.copy()
    keys, values = running.slots.cache.keys.clone(), running.slots.cache.values.clone()
    running.step()
    slots = Slots(engine.model, 3, 32)
    slots.running, slots.at[:3], slots.tokens[:3] = 3, at[:3], tokens[:3]
    slots.cache.keys[:, :3, :, :16], slots.cache.values[:, :3, :, :16] = keys[:, :3], values[:, :3]
    with torch.inference_mode():
        ModelStep(engine.model)(slots)
    torch.testing.assert_close(running.slots.logits[:3], slots.logits[:3], atol=2e-5, rtol=1e-5)


def test_other_types_shapes_and_classes_go_through_forward():
    for model in (tiny_model().to(torch.bfloat16), tiny_model(head_dim=12)):
        assert isinstance(decode_step(model, 2, Team(1)), ModelStep)
    assert isinstance(decode_step(tiny_model(), 2, Team(1)), CompiledStep)


def test_numbers_that_overflow_reach_the_scores():
    model = tiny_model()
    with torch.no_grad():
        model.blocks[0].feed_forward.down.weight[3, 4] = torch.nan
    found, _ = stepped(CompiledStep(model, 9, Team(1)), model, PROMPTS, 1)
    assert np.isnan(found.numpy()).all()
