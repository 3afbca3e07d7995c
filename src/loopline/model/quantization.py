"""int8 weights, one scale per output channel, in the "pack-quantized" layout that `compressed-tensors` reads.

Symmetric round-to-nearest: w ~ scale * q with q in -127..127 and scale = max |w| / 127 of the row. Only linear layers
are quantized; embeddings and norms stay in float32. Our loader turns the weights back into float32, so this saves
neither memory nor time at inference here: what shrinks is the file. Not covered: int8 arithmetic, calibration.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def quantize_rows(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (R, C) and float32 scales (R, 1). A row of zeros gets scale 1."""
    largest = weight_RC.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (weight_RC / scale).round().clamp(-127, 127).to(torch.int8), scale.float()


def dequantize_rows(values_RC: Tensor, scale_R1: Tensor) -> Tensor:
    """float32 weights (R, C)."""
    return values_RC.float() * scale_R1


def pack(values_RC: Tensor) -> Tensor:
    """Four int8 values to an int32, each shifted by 128, the first in the lowest byte: (R, ceil(C / 4))."""
    unsigned = (values_RC.to(torch.int16) + 128).to(torch.uint8)
    return F.pad(unsigned, (0, -unsigned.shape[1] % 4)).contiguous().view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`."""
    return (packed.contiguous().view(torch.uint8).to(torch.int16) - 128).to(torch.int8)[:, :columns]


def quantize_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors with every linear weight packed as int8 beside its scale and shape."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith("_proj.weight"):
            values, out[f"{name}_scale"] = quantize_rows(value)
            out[f"{name}_packed"], out[f"{name}_shape"] = pack(values), torch.tensor(value.shape)
        else:
            out[name] = value
    return dict(sorted(out.items()))


def dequantize_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `quantize_tensors`, up to rounding; float checkpoints pass unchanged."""
    out = {name: value for name, value in tensors.items() if not name.endswith(("_packed", "_scale", "_shape"))}
    for name, packed in tensors.items():
        if name.endswith("_packed"):
            weight = name.removesuffix("_packed")
            columns = int(tensors[f"{weight}_shape"][1])
            out[weight] = dequantize_rows(unpack(packed, columns), tensors[f"{weight}_scale"])
    return out


QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        }
    },
}
"""`quantization_config` of config.json."""
