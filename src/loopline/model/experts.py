"""A sparse feed-forward layer: a router sends each token to its k likeliest experts, each a small SwiGLU.

The tokens of one expert are gathered into one product, so the work is that of k experts per token, not of all; on a GPU
in bfloat16 all experts' products are one grouped kernel. Axes: N tokens, D width, E experts, I width of an expert, k
choices. Not covered: the load-balancing loss, shared experts, experts spread over devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopline.model.config import ModelConfig
from loopline.model.elementwise import gated


class Experts(nn.Module):
    """sum_e p_e(x) down_e(silu(gate_e x) * up_e x) over the k likeliest experts e (Shazeer et al. 2017, eq. 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.settings = config.experts
        count, width, inner = config.experts.num_experts, config.hidden_size, config.experts.moe_intermediate_size
        self.router = nn.Linear(width, count, bias=False)
        self.experts_gate_up = nn.Parameter(torch.empty(count, 2 * inner, width))
        self.experts_down = nn.Parameter(torch.empty(count, width, inner))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights_Nk, chosen_Nk = self.route(x_ND)
        choices = chosen_Nk.shape[1]
        # Assignments sorted by expert: each expert's tokens are one contiguous slab.
        order = chosen_Nk.reshape(-1).argsort(stable=True)
        counts = torch.bincount(chosen_Nk.reshape(-1), minlength=self.settings.num_experts)
        out = self.compute(x_ND[order // choices], counts) * weights_Nk.reshape(-1)[order, None]
        # Back to the order of tokens by a gather, whose sum has one order on every device.
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out[back].view(-1, choices, x_ND.shape[1]).sum(1).view_as(x_BTD)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, k) and numbers (N, k) of each token's experts."""
        probabilities_NE = self.router(x_ND).softmax(-1, dtype=torch.float32)
        weights_Nk, chosen_Nk = probabilities_NE.topk(self.settings.num_experts_per_tok, dim=-1)
        if self.settings.norm_topk_prob:
            weights_Nk = weights_Nk / weights_Nk.sum(-1, keepdim=True)
        return weights_Nk.to(x_ND.dtype), chosen_Nk

    def compute(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """What the experts make of `x_MD`, whose first counts_E[0] rows belong to expert 0, and so on."""
        if x_MD.is_cuda and x_MD.dtype == torch.bfloat16:
            ends = counts_E.cumsum(0).to(torch.int32)
            gate_up_MJ = F.grouped_mm(x_MD, self.experts_gate_up.transpose(1, 2), offs=ends)
            return F.grouped_mm(gated(gate_up_MJ), self.experts_down.transpose(1, 2), offs=ends)
        # `unbind` gives the gradient of all experts in one tensor; indexing would make one of full size per expert.
        slabs = zip(
            x_MD.split(counts_E.tolist()), self.experts_gate_up.unbind(), self.experts_down.unbind(), strict=True
        )
        parts = []
        for part, gate_up, down in slabs:
            if len(part):
                parts.append(F.linear(gated(F.linear(part, gate_up)), down))
        return torch.cat(parts)
