"""Checkpoints equal what `transformers` computes from them."""

import pytest
import torch

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder


def build(qk_norm: bool, tied: bool) -> Decoder:
    config = ModelConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        rope_theta=50_000.0,
        qk_norm=qk_norm,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
    )
    model = Decoder(config).initialize(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return model.eval()


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_checkpoint_with_equal_logits(tmp_path, qk_norm, tied):
    transformers = pytest.importorskip("transformers")
    model = build(qk_norm, tied)
    save_checkpoint(model, tmp_path, tmp_path / "checkpoint")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32).eval()
    tokens = torch.randint(0, 97, (4, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.logits(model(tokens)), peer(tokens).logits
    assert sum(p.numel() for p in peer.parameters()) == model.config.parameters()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_checkpoints_written_by_transformers_load_here(tmp_path, qk_norm):
    transformers = pytest.importorskip("transformers")
    model = build(qk_norm, tied=True)
    save_checkpoint(model, tmp_path, tmp_path / "ours")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    peer.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    tokens = torch.randint(0, 97, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(again.logits(again(tokens)), model.logits(model(tokens)), atol=1e-5, rtol=1e-5)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = build(True, True)
    save_checkpoint(model, tmp_path, tmp_path / "a")
    save_checkpoint(load_model(tmp_path / "a"), tmp_path, tmp_path / "b")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_damaged_weights_file_names_itself_and_the_fix(tmp_path):
    model = build(True, True)
    save_checkpoint(model, tmp_path, tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors.*Fix:"):
        load_model(tmp_path / "a")


def test_other_architectures_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="mamba"):
        load_model(tmp_path)


def test_group_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divisor"):
        ModelConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=3,
            head_dim=8,
        )
