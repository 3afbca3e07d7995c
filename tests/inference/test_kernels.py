"""The compiled parts against numpy and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.compute.team import Team
from loopline.inference import kernels, sampling
from loopline.inference.sampling import Sampling, Scratch, draw


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 13),
    length=st.integers(1, 70),
    columns=st.integers(1, 110),
    bias=st.booleans(),
    add=st.booleans(),
    parts=st.integers(1, 3),
)
def test_a_product_is_numpys_and_a_rows_bits_depend_on_nothing_else(rows, length, columns, bias, add, parts):
    x, w, b, before = (
        numbers(1, rows, length),
        numbers(2, columns, length),
        numbers(3, columns),
        numbers(4, rows, columns),
    )
    panels = np.full((-(-columns // kernels.WIDTH), length, kernels.WIDTH), np.nan, dtype=np.float32)
    for part in range(parts):
        kernels.pack(part, parts, w, panels)
    flat = np.concatenate([panels.reshape(-1), b])
    place = flat.size - columns if bias else -1

    def computed(x, out, parts):
        spare = np.empty((len(x), kernels.WIDTH), np.float32)
        for part in range(parts):
            kernels.product(part, parts, x, flat, 0, place, out, np.int64(add), spare)
        return out

    found = computed(x, before.copy(), parts)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + (b if bias else 0) + (before if add else 0)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    for row in range(rows):
        alone = computed(x[row : row + 1].copy(), before[row : row + 1].copy(), 1)
        assert alone.tobytes() == found[row].tobytes()


def test_exp_is_exact_to_two_units_of_the_last_place_and_keeps_what_is_no_number():
    x = np.linspace(-86.9, 87.9, 20001).astype(np.float32)
    found = np.array([kernels.exp(value) for value in x])
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(found - expected) / np.spacing(expected.astype(np.float32))).max() <= 2
    assert kernels.exp(np.float32(-1000)) < 1e-37 and np.isnan(kernels.exp(np.float32(np.nan)))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_softmax_is_torchs_and_leaves_what_comes_after(count):
    row = 20 * numbers(5, 120)
    found = row.copy()
    kernels.soften(found, count)
    expected = torch.from_numpy(row[:count]).double().softmax(0).numpy()
    np.testing.assert_allclose(found[:count], expected, atol=1e-7, rtol=1e-5)
    assert (found[count:] == row[count:]).all()


@pytest.mark.parametrize("channels", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 5])
def test_attention_is_torchs_whatever_stands_behind_the_last_position(channels, repeats):
    groups, count, length = 2, 21, 40
    q, keys, values = (
        numbers(6, groups * repeats, channels),
        numbers(7, groups, length, channels),
        numbers(8, groups, length, channels),
    )
    keys[:, count:] = values[:, count:] = np.nan
    out, room = np.empty_like(q), np.empty((repeats, length + kernels.LANES), np.float32)
    kernels.attend(q, len(q), keys, values, count, out, room)
    k, v = (torch.from_numpy(part[:, :count]).repeat_interleave(repeats, 0) for part in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(torch.from_numpy(q)[:, None], k, v, scale=1.0)[:, 0]
    np.testing.assert_allclose(out, expected.numpy(), atol=2e-6, rtol=1e-5)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 9),
    size=st.integers(2, 200),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_a_compiled_draw_is_torchs(rows, size, seed, temperature):
    logits = torch.from_numpy(4 * numbers(seed, rows, size))
    logits[:, ::7] = -torch.inf
    logits[:, 1] = 0
    uniforms = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    uniforms[0] = 0.0
    settings_ = Sampling(temperature=temperature)
    found = draw(logits, settings_, uniforms, Scratch(size), Team(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_compiles", lambda *_: False)
        expected = draw(logits, settings_, uniforms, Scratch(size))
    assert found.tokens_B.tolist() == expected.tokens_B.tolist()
    torch.testing.assert_close(found.logprobs_B, expected.logprobs_B, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 65, 200])
def test_a_threshold_at_the_total_takes_a_token_that_has_mass(size):
    logits = torch.from_numpy(numbers(10, 50, size))
    logits[:, size // 2 :] = -torch.inf
    found = draw(logits, Sampling(), torch.full((50,), 1 - 2.0**-53, dtype=torch.float64), Scratch(size))
    assert found.tokens_B.tolist() == [size // 2 - 1] * 50


def test_a_large_draw_is_divided_and_the_same(monkeypatch):
    logits = torch.from_numpy(numbers(9, 7, 900))
    uniforms = torch.rand(7, dtype=torch.float64)
    alone = draw(logits, Sampling(), uniforms, Scratch(900))
    monkeypatch.setattr(sampling, "THREAD_TOKENS", 1000)
    shared = draw(logits, Sampling(), uniforms, Scratch(900), Team(3))
    assert alone.tokens_B.equal(shared.tokens_B) and alone.logprobs_B.equal(shared.logprobs_B)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(wrong):
    logits = torch.zeros(3, 40)
    logits[1, 17] = wrong
    with pytest.raises(UserError, match="not finite"):
        draw(logits, Sampling(), torch.full((3,), 0.5, dtype=torch.float64), Scratch(40))
