"""Checkpoints of the four families against `transformers`: logits, loss, one AdamW step, cached decoding, saving."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.model.layout import join_experts, split_fused_experts
from loopline.training.batch import Example, build_batch
from loopline.training.objectives import NextToken
from tests.model.families import EXPERTS, FAMILIES, SIZES, save_random

families = pytest.mark.parametrize("family", FAMILIES)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: (root / str(k), save_random(make, root / str(k))) for k, (name, make) in enumerate(FAMILIES.items())}


def random_tokens(*shape, seed=0):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def relative(ours, theirs):
    """Largest difference over the largest value: what float32 can promise of a sum."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def names_of(path):
    with safe_open(path / "model.safetensors", "pt") as file:
        return sorted(file.keys())


@families
def test_logits_equal_those_of_transformers(checkpoints, family):
    path, peer = checkpoints[family]
    model = load_model(path)
    assert isinstance(model, Decoder)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters() == peer.num_parameters()
    tokens = random_tokens(3, 60)
    with torch.no_grad():
        assert relative(model.logits(model(tokens)), peer(tokens).logits) < 1e-5


@families
def test_loss_gradients_and_one_adamw_step_equal_those_of_transformers(checkpoints, tmp_path, family):
    path, _ = checkpoints[family]
    model = load_model(path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    rows = [[Example(row.tolist(), [1.0] * 24)] for row in random_tokens(4, 24, seed=3)]
    total, weight, _ = NextToken().loss(model, build_batch(rows))
    tokens = random_tokens(4, 24, seed=3)
    loss = peer(tokens, labels=tokens).loss
    torch.testing.assert_close(total / weight, loss, **CLOSE)
    (total / weight).backward()
    loss.backward()
    # One set of names for both: our gradients and weights, saved, are compared tensor by tensor.
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            parameter.copy_(parameter.grad)
    save_checkpoint(model, path, tmp_path / "gradients")
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    theirs = gradients_of(peer, tmp_path / "theirs")
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert relative(ours[name], theirs[name]) < 1e-5, name
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    # A first step is lr times nearly the sign of each gradient, also of one that is rounding alone: lr bounds that.
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    for parameters in (model.parameters(), peer.parameters()):
        torch.optim.AdamW(parameters, **settings).step()
    save_checkpoint(model, path, tmp_path / "stepped")
    peer.save_pretrained(tmp_path / "peer")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("stepped", "peer"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **CLOSE)


def gradients_of(peer, path):
    """The gradients of a `transformers` model, under the names it saves its weights with."""
    kept = {name: p.detach().clone() for name, p in peer.named_parameters()}
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter.grad)
        peer.save_pretrained(path)
        for name, parameter in peer.named_parameters():
            parameter.copy_(kept[name])
    return load_file(path / "model.safetensors")


@families
def test_saving_gives_back_every_name_and_key(checkpoints, tmp_path, family):
    path, peer = checkpoints[family]
    model = load_model(path)
    save_checkpoint(model, path, tmp_path / "again")
    assert names_of(tmp_path / "again") == names_of(path)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((path / name).read_text())
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        assert torch.equal(reloaded(tokens).logits, peer(tokens).logits)


@families
def test_a_decoder_without_a_source_writes_a_config_that_transformers_reads(checkpoints, tmp_path, family):
    path, peer = checkpoints[family]
    model = load_model(path)
    model.source = None
    save_checkpoint(model, path, tmp_path / "fresh")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fresh", dtype=torch.float32)
    assert type(reloaded) is type(peer)
    assert ModelConfig.from_huggingface(tmp_path / "fresh") == model.config
    assert ModelConfig.model_validate(model.config.model_dump()) == model.config
    tokens = random_tokens(2, 60)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(tokens).logits, peer(tokens).logits, atol=1e-4, rtol=1e-4)


@families
def test_cached_decoding_equals_a_fresh_forward(checkpoints, family):
    """Rows of unlike lengths: a padded prefill, then one token at a time at each row's own position."""
    model = load_model(checkpoints[family][0]).eval()
    lengths, more = torch.tensor([3, 7, 5]), 6
    rows = random_tokens(3, 13)
    longest = int(lengths.max())
    cache = model.new_cache(3, longest)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        positions = torch.arange(longest).expand(3, longest)
        hidden = model(rows[:, :longest], positions_BT=positions, mask=causal, cache=cache)
        cache.grow(longest + more)
        steps = [hidden[torch.arange(3), lengths - 1]]
        for step in range(more):
            where = (lengths + step)[:, None]
            mask = (torch.arange(cache.length)[None] <= where)[:, None, None]
            steps.append(model(rows.gather(1, where), positions_BT=where, mask=mask, cache=cache)[:, 0])
        for number, length in enumerate(lengths.tolist()):
            fresh = model(rows[number : number + 1, : length + more])[0, length - 1 :]
            torch.testing.assert_close(torch.stack([s[number] for s in steps]), fresh, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama 3", "qwen3 experts"])
def test_half_precision_checkpoints_load_as_float32_and_save_as_asked(tmp_path, dtype, family):
    save_random(FAMILIES[family], tmp_path / "half", dtype)
    model = load_model(tmp_path / "half")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        assert relative(model.logits(model(tokens)), peer(tokens).logits) < 1e-5
    for wanted, expected in (("source", dtype), (None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        save_checkpoint(model, tmp_path, tmp_path / "out", dtype=wanted)
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert {value.dtype for value in written.values()} == {expected}
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(expected)[6:]
        if wanted == "source":
            stored = load_file(tmp_path / "half" / "model.safetensors")
            assert all(torch.equal(written[name], stored[name]) for name in stored)
    assert next(load_model(tmp_path / "half", dtype=dtype).parameters()).dtype == dtype


def test_shards_load_and_a_missing_or_incomplete_one_is_named(tmp_path):
    peer = save_random(FAMILIES["qwen2"], tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    tokens = random_tokens(2, 20)
    model = load_model(tmp_path)
    with torch.no_grad():
        assert relative(model.logits(model(tokens)), peer(tokens).logits) < 1e-5
    lost = load_file(shards[1])
    name = sorted(lost)[0]
    save_file({key: value for key, value in lost.items() if key != name} or {"x": torch.zeros(1)}, shards[1])
    with pytest.raises(UserError, match=name):
        load_model(tmp_path)
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        load_model(tmp_path)


def test_experts_kept_in_one_tensor_load_and_stay_so(checkpoints, tmp_path):
    path, peer = checkpoints["qwen3 experts"]
    tensors = join_experts(load_file(path / "model.safetensors"))
    assert not any(".experts.0." in name for name in tensors)
    (tmp_path / "fused").mkdir()
    save_file(tensors, tmp_path / "fused" / "model.safetensors")
    (tmp_path / "fused" / "config.json").write_text((path / "config.json").read_text())
    model = load_model(tmp_path / "fused")
    with torch.no_grad():
        tokens = random_tokens(2, 20)
        assert relative(model.logits(model(tokens)), peer(tokens).logits) < 1e-5
    save_checkpoint(model, tmp_path, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert sorted(again) == sorted(tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert sorted(split_fused_experts(tensors)) == names_of(path)


def test_tied_tables_stored_twice_and_rotary_tables_are_kept(checkpoints, tmp_path):
    path, _ = checkpoints["qwen2"]
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "config.json").write_text((path / "config.json").read_text())
    save_checkpoint(load_model(tmp_path / "a"), path, tmp_path / "b")
    again = load_file(tmp_path / "b" / "model.safetensors")
    assert sorted(again) == sorted(tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert not (tmp_path / "b" / "generation_config.json").exists()


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_the_config_does_not_promise_are_named(checkpoints, tmp_path, change):
    path, _ = checkpoints["qwen3"]
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        name = "model.layers.1.mlp.up_proj.bias"
        tensors[name] = torch.zeros(48)
    else:
        tensors[name] = torch.zeros(47, 32)
        name = "gate_up"
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    with pytest.raises(UserError, match=rf"{name}.*Fix:"):
        load_model(tmp_path)


def test_only_the_chosen_experts_are_computed(checkpoints):
    """Weights of experts that no token chose do not matter, and get a gradient of zero."""
    model = load_model(checkpoints["qwen3 experts"][0])
    layer = model.blocks[0].feed_forward
    x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(1))
    _, chosen = layer.route(x[0])
    idle = sorted(set(range(EXPERTS["num_experts"])) - set(chosen.flatten().tolist()))
    assert idle
    before = layer(x)
    before.sum().backward()
    assert float(layer.experts_gate_up.grad[idle].abs().max()) == 0
    with torch.no_grad():
        layer.experts_gate_up[idle] = torch.nan
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("normalize", [True, False])
def test_experts_equal_the_sum_over_all_of_them_written_out(normalize):
    settings = {**SIZES, **EXPERTS, "norm_topk_prob": normalize}
    config = ModelConfig.from_raw(transformers.Qwen3MoeConfig(**settings).to_dict())
    model = Decoder(config).initialize(torch.Generator().manual_seed(2))
    layer = model.blocks[1].feed_forward
    x = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(1))
    p = (x @ layer.router.weight.T).softmax(-1)
    p = torch.where(p >= p.sort(-1, descending=True)[0][..., 1:2], p, torch.zeros_like(p))
    if normalize:
        p = p / p.sum(-1, keepdim=True)
    expected = torch.zeros_like(x)
    for e in range(6):
        gate, up = (x @ layer.experts_gate_up[e].T).chunk(2, -1)
        expected += p[..., e : e + 1] * ((F.silu(gate) * up) @ layer.experts_down[e].T)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach(), atol=1e-6, rtol=1e-5)


def test_configs_written_before_biases_and_experts_keep_their_bytes():
    dumped = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    ).model_dump()  # fmt: skip
    assert sorted(dumped) == [
        "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "qk_norm", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
        "vocab_size",
    ]  # fmt: skip
