"""What a decoder computes element by element on a CPU, with backward passes of their own.

    y_BTD = rms_norm(x_BTD, weight_D, eps)
    q, k, v = split_heads(qkv_BTX, counts, norms, eps, cos, sin)     # normalized and rotated
    h_BTI = gated(gate_up_BTJ)                                       # silu(gate) * up

In torch each of these is several operations, and each keeps tensors and walks over memory again on its way back; what
is neither product nor attention was, with the functions here, still 30% of a step of a million parameters. The forward
passes take torch's steps in torch's order and round as they do. The backward passes are written out. They are used for
float32 and float64 on a CPU; on other devices, under autocast and while compiling, torch's own operations are. Axes: B
rows, T positions, D width, H query heads, K key heads, C channels of a head. Not covered: second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Context = Any
"""What torch hands an autograd function to keep things in."""


def written_out(x: Tensor) -> bool:
    """Whether the functions here serve this tensor, or torch's operations do."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), with `rms_norm` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.eps is None or not written_out(x):
            return super().forward(x)
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return _RMSNorm.apply(x, weight, eps)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (..., I) of gate and up side by side (..., 2 I)."""
    if written_out(gate_up):
        return _Gated.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Llama checkpoints (arXiv:2104.09864, eq. 34)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def split_heads(
    qkv_BTX: Tensor,
    counts: tuple[int, int],
    norms: tuple[RMSNorm, RMSNorm] | None,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, C), keys and values (B, K, T, C); queries and keys normalized and rotated.

    `counts` are H and K. `cos` and `sin` are (T, C/2) or (B, 1, T, C/2).
    """
    heads, groups = counts
    every_BTXC = qkv_BTX.unflatten(-1, (heads + 2 * groups, -1))
    if written_out(qkv_BTX):
        weights = (norms[0].weight, norms[1].weight) if norms else (None, None)
        eps = norms[0].eps if norms else None
        return _SplitHeads.apply(every_BTXC, heads, groups, *weights, eps, cos, sin)
    q, k, v = every_BTXC.split((heads, groups, groups), dim=2)
    if norms is not None:
        q, k = norms[0](q), norms[1](k)
    return rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v.transpose(1, 2)


def normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x / root, 1 / root): brought to a mean square of 1 over the last axis, as torch rounds it."""
    scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return x * scale, scale


def normalize_backward(grad: Tensor, unit: Tensor, scale: Tensor, dot: Tensor) -> Tensor:
    """The gradient of what was normalized, in the place of `grad`, that of `unit`; `dot` is mean(grad * unit)."""
    return grad.addcmul_(unit, dot, value=-1).mul_(scale)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        unit, scale = normalize(x, eps)
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        both = grad * unit
        dot = (both @ weight).unsqueeze(-1).div_(weight.shape[0])
        found = normalize_backward(grad * weight, unit, scale, dot)
        return found, both.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        found = torch.empty_like(gate_up)
        of_gate, of_up = found.chunk(2, -1)
        torch.mul(grad, opened, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return found


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        every_BTXC: Tensor,
        heads: int,
        groups: int,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float | None,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        both = heads + groups
        x = every_BTXC[:, :, :both]
        cos, sin = along_heads(cos), along_heads(sin)
        saved = [cos, sin]
        if q_weight is not None and k_weight is not None and eps is not None:
            weight_XC = torch.cat((q_weight.expand(heads, -1), k_weight.expand(groups, -1)))
            unit, scale = normalize(x, eps)
            saved += [unit, scale, weight_XC]
            x = unit * weight_XC
        turned = torch.empty(x.shape, dtype=x.dtype)
        turn(x, cos, sin, turned)
        ctx.save_for_backward(*saved)
        ctx.heads, ctx.groups = heads, groups
        q, k = turned[:, :, :heads], turned[:, :, heads:]
        return q.transpose(1, 2), k.transpose(1, 2), every_BTXC[:, :, both:].transpose(1, 2)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, *rest = ctx.saved_tensors
        heads, groups = ctx.heads, ctx.groups
        of_q, of_k, of_v = (grad.transpose(1, 2) for grad in grads)
        rows, length, _, channels = of_q.shape
        found = of_q.new_empty(rows, length, heads + 2 * groups, channels)
        turn_back(of_q, cos, sin, found[:, :, :heads])
        turn_back(of_k, cos, sin, found[:, :, heads : heads + groups])
        found[:, :, heads + groups :].copy_(of_v)
        of_weights: tuple[Tensor | None, Tensor | None] = (None, None)
        if rest:
            unit, scale, weight_XC = rest
            grad = found[:, :, : heads + groups]
            product = grad * unit
            if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
                by_head = product.sum((0, 1))
                of_weights = (by_head[:heads].sum(0), by_head[heads:].sum(0))
            dot = product.mul_(weight_XC).mean(-1, keepdim=True)
            normalize_backward(grad.mul_(weight_XC), unit, scale, dot)
        return found, None, None, *of_weights, None, None, None


def along_heads(table: Tensor) -> Tensor:
    """A table of angles, (T, C/2) or (B, 1, T, C/2), for tensors of (B, T, heads, C/2)."""
    return table[:, None] if table.dim() == 2 else table.transpose(1, 2)


def turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """`rotate` of `x` into `out`, rounded as it rounds: products first, which `addcmul_` would not."""
    (first, second), (one, two) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=one).sub_(second * sin)
    torch.mul(second, cos, out=two).add_(first * sin)


def turn_back(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """The rotation by the opposite angle: the gradient of `turn`."""
    (first, second), (one, two) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=one).addcmul_(second, sin)
    torch.mul(second, cos, out=two).addcmul_(first, sin, value=-1)
