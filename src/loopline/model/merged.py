"""The weights that a `transformers` module computes with, as plain tensors: four-bit ones unpacked, adapters added.

    state = merged_tensors(module)

Not covered: putting an adapter on a module (see `model.adapter`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def merged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict, four-bit weights unpacked and every adapter added; the module is not changed."""
    state: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    unpacked: dict[str, Tensor] = {}
    part: Any
    for name, part in module.named_modules():
        if _is_packed(part):
            unpacked[f"{name}.weight"] = _unpack(part)
        for adapter in getattr(part, "active_adapters", ()) if hasattr(part, "get_delta_weight") else ():
            deltas[f"{name}.weight"] = deltas.get(f"{name}.weight", 0) + part.get_delta_weight(adapter)
    for name, stored in module.state_dict().items():
        # "...weight.absmax" and its like are constants of a packed weight.
        if ".lora_" in name or f"{name.partition('.weight.')[0]}.weight" in unpacked and ".weight." in name:
            continue
        value = unpacked.get(name, stored)
        plain = name.replace(".base_layer.", ".")
        state[plain] = value + deltas[plain].to(value.dtype) if plain in deltas else value
    return state


def quantized(module: nn.Module) -> bool:
    """Whether any of the module's weights are packed into four bits."""
    return any(_is_packed(part) for part in module.modules())


def _is_packed(part: nn.Module) -> bool:
    # The layers that `peft` puts around these have the same name, and the weight as a property.
    return type(part).__name__ == "Linear4bit" and not hasattr(part, "base_layer")


def _unpack(part: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(part.weight.data, part.weight.quant_state)
    return weight.to(part.compute_dtype)
