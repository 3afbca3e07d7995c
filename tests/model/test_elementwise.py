"""Normalization, rotation and gates against torch's own operations, forward and back."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loopline.model import elementwise
from loopline.model.elementwise import RMSNorm, gated, rms_norm, rotate, split_heads


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tables(rows: int | None, length: int, half: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, C/2) or (B, 1, T, C/2)."""
    angles = draw(*((length, half) if rows is None else (rows, 1, length, half)), seed=9, dtype=dtype)
    return angles.cos(), angles.sin()


def plain_heads(
    qkv_BTX: Tensor, heads: int, groups: int, weights: tuple[Tensor, Tensor] | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `split_heads` is to compute, in torch's operations."""
    every = qkv_BTX.view(*qkv_BTX.shape[:2], heads + 2 * groups, -1)
    q, k, v = torch.split(every, [heads, groups, groups], dim=2)
    if weights is not None:
        q, k = (F.rms_norm(x, x.shape[-1:], weight, 1e-6) for x, weight in zip((q, k), weights, strict=True))
    return rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v.transpose(1, 2)


def norms_of(weights: tuple[Tensor, Tensor]) -> tuple[RMSNorm, RMSNorm]:
    made = []
    for weight in weights:
        norm = RMSNorm(len(weight), eps=1e-6, dtype=weight.dtype)
        norm.weight = torch.nn.Parameter(weight.clone())
        made.append(norm)
    return made[0], made[1]


@settings(max_examples=30)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 9),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    half=st.integers(1, 8),
    norms=st.booleans(),
    own_positions=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_heads_have_torchs_values_and_gradients(
    rows: int, length: int, heads: tuple[int, int], half: int, norms: bool, own_positions: bool, seed: int
) -> None:
    count, groups = heads
    dtype = torch.float64
    qkv = draw(rows, length, (count + 2 * groups) * 2 * half, seed=seed, dtype=dtype).requires_grad_()
    weights = (draw(2 * half, seed=seed + 1, dtype=dtype), draw(2 * half, seed=seed + 2, dtype=dtype))
    cos, sin = tables(rows if own_positions else None, length, half, dtype)
    made = norms_of(weights) if norms else None
    found = split_heads(qkv, heads, made, cos, sin)
    known = [weight.clone().requires_grad_() for weight in weights]
    expected = plain_heads(qkv, count, groups, (known[0], known[1]) if norms else None, cos, sin)
    pulls = [draw(*x.shape, seed=seed + 3 + n, dtype=dtype) for n, x in enumerate(expected)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)

    def gradients(outputs: tuple[Tensor, ...], of: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad([(x * pull).sum() for x, pull in zip(outputs, pulls, strict=True)], of)

    ours_of: list[Tensor] = [qkv, *([made[0].weight, made[1].weight] if made else [])]
    for ours, theirs in zip(
        gradients(found, ours_of), gradients(expected, [qkv, *(known if norms else [])]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_agree_with_finite_differences() -> None:
    x = draw(2, 3, 6, dtype=torch.float64).requires_grad_()
    weight = draw(6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(gated, (x,))
    heads = draw(2, 3, 4 * 4, seed=2, dtype=torch.float64).requires_grad_()
    norms = norms_of((draw(4, seed=3, dtype=torch.float64), draw(4, seed=4, dtype=torch.float64)))
    cos, sin = tables(None, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x: split_heads(x, (2, 1), norms, cos, sin), (heads,))


def test_forward_passes_round_as_torchs() -> None:
    x, weight = 3 * draw(5, 7, 48), draw(48, seed=1)
    assert torch.equal(rms_norm(x, weight, 1e-6), F.rms_norm(x, (48,), weight, 1e-6))
    gate, up = x.chunk(2, -1)
    assert torch.equal(gated(x), F.silu(gate) * up)
    cos, sin = tables(None, 7, 4)
    for ours, theirs in zip(split_heads(x, (4, 1), None, cos, sin), plain_heads(x, 4, 1, None, cos, sin), strict=True):
        assert torch.equal(ours, theirs)


def test_other_ways_of_computing_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("not under autocast")

    for name in ("_RMSNorm", "_Gated", "_SplitHeads"):
        monkeypatch.setattr(getattr(elementwise, name), "apply", refuse)
    norm = RMSNorm(16, eps=1e-6)
    x = draw(2, 3, 16)
    cos, sin = tables(None, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 1e-6))
        torch.testing.assert_close(gated(x), F.silu(x[..., :8]) * x[..., 8:])
        for ours, theirs in zip(
            split_heads(x, (2, 1), None, cos, sin), plain_heads(x, 2, 1, None, cos, sin), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


def test_a_frozen_weight_gets_no_gradient() -> None:
    norm = RMSNorm(8, eps=1e-6).requires_grad_(False)
    x = draw(4, 8).requires_grad_()
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None
