"""Adapters: `peft` reads what we write, merged weights compute the same, the base is untouched."""

import builtins

import pytest
import torch
import transformers

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.adapter import (
    LoRAConfig,
    add_adapter,
    disabled,
    load_adapter,
    merged_state,
    save_adapter,
)
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.huggingface import load_huggingface
from tests.model.families import FAMILIES, OTHERS, SIZES, save_random

peft = pytest.importorskip("peft")
KINDS = {name: FAMILIES[name] for name in ("llama 3", "qwen2", "qwen3")} | {"gpt2": OTHERS["gpt2"]}
kinds = pytest.mark.parametrize("kind", KINDS)
SETTINGS = LoRAConfig(rank=4, alpha=8.0)


def tokens_of(seed=0):
    return torch.randint(3, 97, (2, 18), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens):
    with torch.no_grad():
        return model.logits(model(tokens))


def trained(path, steps=3):
    """An adapter on the checkpoint in `path`, moved away from zero."""
    model = add_adapter(load_huggingface(path), SETTINGS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        tokens = tokens_of(step)
        loss = torch.nn.functional.cross_entropy(
            model.logits(model(tokens))[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@kinds
def test_a_fresh_adapter_changes_nothing_and_only_it_has_gradients(tmp_path, kind):
    save_random(KINDS[kind], tmp_path)
    model = load_huggingface(tmp_path)
    before = logits(model, tokens_of())
    names = {name for name, _ in model.named_parameters()}
    add_adapter(model, SETTINGS)
    assert torch.equal(logits(model, tokens_of()), before)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free and all(".lora_" in name for name in free)
    kept = {name.replace(".base_layer", "") for name, p in model.named_parameters() if not p.requires_grad}
    assert kept == names
    other = add_adapter(load_huggingface(tmp_path), SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="adapter already"):
        add_adapter(model, SETTINGS)


@kinds
def test_saved_adapters_load_in_peft_and_here_with_equal_logits(tmp_path, kind):
    save_random(KINDS[kind], tmp_path / "base")
    model = trained(tmp_path / "base")
    after = logits(model, tokens_of())
    with disabled(model) as reference:
        base = logits(reference, tokens_of())
    assert torch.equal(base, logits(load_huggingface(tmp_path / "base"), tokens_of()))
    assert float((after - base).abs().max()) > 0.05
    save_adapter(model, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    peer = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "adapter"
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(peer(tokens_of()).logits, after, atol=1e-6, rtol=1e-6)
    again = load_adapter(load_huggingface(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again, tokens_of()), after)
    assert any(p.requires_grad for p in again.parameters())


@kinds
def test_rollouts_and_merged_checkpoints_follow_the_adapter(tmp_path, kind):
    save_random(KINDS[kind], tmp_path / "base")
    model = trained(tmp_path / "base")
    after = logits(model, tokens_of())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = TorchEngine(load_model(tmp_path / "base").eval(), None)
    engine.load(merged_state(model, engine.model), 5)
    torch.testing.assert_close(logits(engine.model, tokens_of()), after, atol=5e-5, rtol=1e-4)
    (group,) = engine.generate([tokens_of()[0, :6].tolist()], Sampling(max_new_tokens=12, seed=2, stop_token_ids=(1,)))
    row = torch.tensor([tokens_of()[0, :6].tolist() + group[0].token_ids])
    scores = logits(model, row)[0, 5:-1].log_softmax(-1).gather(1, row[0, 6:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(group[0].logprobs), scores, atol=1e-4, rtol=1e-4)
    save_checkpoint(model, tmp_path, tmp_path / "merged")
    plain = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(plain, tokens_of()), after, atol=5e-5, rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_four_bit_base_trains_samples_and_merges_as_one_policy(tmp_path):
    pytest.importorskip("bitsandbytes")
    # Blocks of 64 weights share a scale, so the matrices are made of whole blocks.
    save_random(
        lambda: transformers.Qwen3Config(**SIZES | {"hidden_size": 64, "initializer_range": 0.1}, head_dim=16),
        tmp_path / "base",
    )
    full = logits(load_huggingface(tmp_path / "base"), tokens_of())
    model = load_huggingface(tmp_path / "base", four_bit=True)
    assert model.config.parameters() == load_huggingface(tmp_path / "base").config.parameters()
    start = logits(model, tokens_of())
    assert 0 < float((start - full).std()) < 0.5 * float(full.std())
    add_adapter(model, SETTINGS)
    assert torch.equal(logits(model, tokens_of()), start)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        model.logits(model(tokens_of())).square().mean().backward()
        optimizer.step()
    after = logits(model, tokens_of())
    assert float((after - start).abs().max()) > 0.05
    engine = TorchEngine(load_model(tmp_path / "base").eval(), None)
    engine.load(merged_state(model, engine.model), 1)
    torch.testing.assert_close(logits(engine.model, tokens_of()), after, atol=1e-4, rtol=1e-4)
    save_checkpoint(model, tmp_path, tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged"), tokens_of()), after, atol=1e-4, rtol=1e-4)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_huggingface(tmp_path / "base", four_bit=True), tmp_path / "adapter")
    assert torch.equal(logits(again, tokens_of()), after)


def test_mistakes_are_named(tmp_path, monkeypatch):
    save_random(KINDS["qwen2"], tmp_path)
    model = load_huggingface(tmp_path)
    with pytest.raises(UserError, match="no adapter_config.json"):
        load_adapter(model, tmp_path)
    with pytest.raises(UserError, match="has no adapter"):
        save_adapter(model, tmp_path)
    with pytest.raises(UserError, match="fits nowhere"):
        add_adapter(model, LoRAConfig(targets=("no_such_layer",)))
    real = builtins.__import__

    def refuse(name, *arguments, **named):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"loopline\[peft\]"):
        add_adapter(model, LoRAConfig())
