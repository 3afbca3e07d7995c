"""The decoder against plain formulas: cache, packing, grouped heads, rotation, tied tables."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder, KeyValueCache
from loopline.model.elementwise import rotate
from loopline.training.batch import Example, build_batch
from tests.support_model import tiny_config, tiny_model

SHAPES = {
    "qk norm, tied": {"qk_norm": True, "tie_word_embeddings": True},
    "qk norm, untied": {"qk_norm": True, "tie_word_embeddings": False},
    "plain, tied": {"qk_norm": False, "tie_word_embeddings": True},
    "plain, untied": {"qk_norm": False, "tie_word_embeddings": False},
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def rough(seed=0, **changes):
    """A tiny decoder whose norms are not all ones, so that a missing norm shows."""
    model = tiny_model(seed, **changes)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def by_hand(model, tokens):
    """Logits (T, V) of one sequence, position by position and head by head, from the weights alone."""
    config, size = model.config, len(tokens)
    queries, keys, c = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    x = model.embedding.weight[tokens]
    frequencies = torch.tensor([config.rope_theta ** (-2 * i / c) for i in range(c // 2)])

    def turn(vector, position):
        # Channel i and channel i + c/2 are the real and imaginary part of one number.
        z = torch.complex(vector[: c // 2], vector[c // 2 :]) * torch.polar(torch.ones(c // 2), position * frequencies)
        return torch.cat((z.real, z.imag))

    for block in model.blocks:
        h = rms(x, block.attention_norm.weight, config.rms_norm_eps)
        q, k, v = (h @ block.attention.qkv.weight.T).split((queries * c, keys * c, keys * c), -1)
        q, k, v = q.view(size, queries, c), k.view(size, keys, c), v.view(size, keys, c)
        if config.qk_norm:
            q = rms(q, block.attention.q_norm.weight, config.rms_norm_eps)
            k = rms(k, block.attention.k_norm.weight, config.rms_norm_eps)
        rows = []
        for at in range(size):
            heads = []
            for head in range(queries):
                group = head * keys // queries
                scores = torch.stack(
                    [turn(q[at, head], at) @ turn(k[s, group], s) / c**0.5 for s in range(at + 1)]
                ).softmax(0)
                heads.append(scores @ v[: at + 1, group])
            rows.append(torch.cat(heads))
        x = x + torch.stack(rows) @ block.attention.out.weight.T
        h = rms(x, block.feed_forward_norm.weight, config.rms_norm_eps)
        gate, up = (h @ block.feed_forward.gate_up.weight.T).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ block.feed_forward.down.weight.T
    table = model.embedding.weight if config.tie_word_embeddings else model.head.weight
    return rms(x, model.norm.weight, config.rms_norm_eps) @ table.T


@shapes
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_logits_equal_the_formula_written_out(shape, keys):
    model = rough(3, num_key_value_heads=keys, rope_theta=500.0, **SHAPES[shape])
    tokens = torch.randint(10, 300, (7,), generator=torch.Generator().manual_seed(keys))
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model(tokens[None]))[0], by_hand(model, tokens.tolist()), atol=1e-5, rtol=1e-4
        )


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    more=st.integers(1, 6),
    shape=st.sampled_from(sorted(SHAPES)),
    seed=st.integers(0, 99),
)
def test_the_cache_gives_what_a_fresh_forward_gives(lengths, more, shape, seed):
    """Rows of unlike lengths: a padded prefill, then one token at a time at each row's own position."""
    model = rough(4, **SHAPES[shape])
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(10, 300, (length + more,), generator=generator) for length in lengths]
    longest = max(lengths)
    starts = torch.tensor(lengths)
    padded = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        padded[number, :length] = row[:length]
    cache = KeyValueCache(model.config, len(rows), longest, padded.device, torch.float32)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        hidden = model(padded, positions_BT=torch.arange(longest).expand(len(rows), longest), mask=causal, cache=cache)
        cache.grow(longest + more)
        steps = [hidden[torch.arange(len(rows)), starts - 1]]
        for step in range(more):
            tokens = torch.stack([row[length + step] for row, length in zip(rows, lengths, strict=True)])
            where = (starts + step)[:, None]
            mask = (torch.arange(cache.length)[None] <= where)[:, None, None]
            steps.append(model(tokens[:, None], positions_BT=where, mask=mask, cache=cache)[:, 0])
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            fresh = model(row[None])[0, length - 1 :]
            torch.testing.assert_close(torch.stack([s[number] for s in steps]), fresh, atol=2e-5, rtol=1e-4)


def test_rows_of_a_cache_can_be_repeated_and_dropped():
    model = rough(5)
    first, second = torch.tensor([[20, 21, 22]]), torch.tensor([[30, 31, 32]])
    cache = KeyValueCache(model.config, 2, 4, torch.device("cpu"), torch.float32)
    positions = torch.arange(3).expand(2, 3)
    mask = torch.ones(3, 4, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        model(torch.cat((first, second)), positions_BT=positions, mask=mask, cache=cache)
        cache.select(torch.tensor([1, 0, 1]))
        tokens, where = torch.tensor([[40], [41], [42]]), torch.full((3, 1), 3)
        hidden = model(tokens, positions_BT=where, mask=torch.ones(3, 1, 1, 4, dtype=torch.bool), cache=cache)
        for row, (prompt, token) in enumerate(((second, 40), (first, 41), (second, 42))):
            fresh = model(torch.cat((prompt, torch.tensor([[token]])), 1))[0, -1]
            torch.testing.assert_close(hidden[row, 0], fresh, atol=1e-5, rtol=1e-4)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=2, max_size=5),
    changed=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_packed_sequences_do_not_see_each_other(lengths, changed, seed):
    model, changed = rough(6), changed % len(lengths)
    generator = torch.Generator().manual_seed(seed)

    def row(*, other):
        examples = []
        for number, length in enumerate(lengths):
            tokens = torch.randint(10, 150, (length,), generator=generator.manual_seed(seed + number))
            examples.append(Example((tokens + 150 * (other and number == changed)).tolist(), [1.0] * length))
        return build_batch([examples])

    before, after = row(other=False), row(other=True)
    with torch.no_grad():
        a, b = (
            model.logits(model(batch.tokens_BT, positions_BT=batch.positions_BT, mask=batch.mask()))
            for batch in (before, after)
        )
    same = before.sequences_BT != changed
    assert torch.equal(a[same], b[same])
    assert not torch.allclose(a[~same], b[~same])


def test_the_future_is_never_seen():
    model = rough(7)
    tokens = torch.randint(10, 300, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = torch.randint(10, 300, (4,))
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :8], b[:, :8], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("keys", [1, 2])
def test_grouped_heads_equal_many_heads_with_copied_keys(keys):
    grouped = rough(8, num_key_value_heads=keys)
    config = grouped.config
    heads, c = config.num_attention_heads, config.head_dim
    many = Decoder(config.model_copy(update={"num_key_value_heads": heads})).eval()
    state = dict(grouped.state_dict())
    for name in [name for name in state if name.endswith("qkv.weight")]:
        q, k, v = state[name].split((heads * c, keys * c, keys * c))
        copies = [part.view(keys, c, -1).repeat_interleave(heads // keys, 0).reshape(heads * c, -1) for part in (k, v)]
        state[name] = torch.cat((q, *copies))
    many.load_state_dict(state)
    tokens = torch.randint(10, 300, (3, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(grouped(tokens), many(tokens), atol=1e-5, rtol=1e-4)


@given(shift=st.integers(0, 60), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_rotated_products_depend_on_distance_alone(shift, seed):
    model = tiny_model()
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(seed)).unbind(0)

    def product(at, other):
        return (rotate(q, model.cos[at], model.sin[at]) * rotate(k, model.cos[other], model.sin[other])).sum()

    torch.testing.assert_close(product(9 + shift, 4 + shift), product(9, 4), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(q, model.cos[shift], model.sin[shift]).norm(), q.norm())


@shapes
def test_saving_and_loading_keeps_every_weight_and_every_gradient_flows(shape, tmp_path):
    model = rough(9, **SHAPES[shape])
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters()
    save_checkpoint(model, tmp_path, tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint")
    assert again.config == model.config
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    tokens = torch.randint(10, 300, (2, 9))
    F.cross_entropy(again.logits(again(tokens)).flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in again.parameters())


def test_fresh_weights_depend_on_the_seed_alone():
    a, b, c = tiny_model(1), tiny_model(1), tiny_model(2)
    assert torch.equal(a.embedding.weight, b.embedding.weight)
    assert not torch.equal(a.embedding.weight, c.embedding.weight)
    # A fresh model is nearly undecided, whatever it is asked.
    with torch.no_grad():
        entropy = torch.distributions.Categorical(logits=a.logits(a(torch.randint(10, 300, (4, 20))))).entropy()
    assert float(entropy.mean()) > 0.97 * torch.log(torch.tensor(300.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 8.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding"),
        ({"partial_rotary_factor": 0.5}, "part of the channels"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_the_decoder_would_compute_otherwise_is_refused_by_name(tmp_path, change, words):
    raw = tiny_config().to_huggingface() | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=words):
        ModelConfig.from_huggingface(tmp_path)
