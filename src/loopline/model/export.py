"""A checkpoint directory in the form others take it: safetensors of a chosen type in shards, or one GGUF file.

    export_safetensors(path, out, dtype="source", shard_bytes=5_000_000_000)
    export_gguf(path, out / "model-q8_0.gguf", "q8_0")             # see `model.gguf_write`

Tensors are cast and written one shard at a time, without building the model, so every architecture can be exported
without `transformers`. "source" is the type that the weights had before they were trained here. Not covered: pickles.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.model.checkpoint import copy_companions
from loopline.model.config import READABLE_QUANTIZATION
from loopline.model.language_model import SOURCE_DTYPE
from loopline.model.quantization import dequantize_tensors
from loopline.model.weights import SHARD_BYTES, read_tensors, write_tensors

ExportType = Literal["source", "float32", "bfloat16", "float16"]


def export_safetensors(path: Path, out: Path, dtype: ExportType = "source", shard_bytes: int = SHARD_BYTES) -> None:
    """Write the checkpoint in `path` into the directory `out` with weights in `dtype`, files of at most `shard_bytes`.

    Raises `UserError` for weights that are quantized in a way that cannot be expanded.
    """
    raw = read_json(path / "config.json")
    tensors = read_tensors(path)
    quantization = raw.pop("quantization_config", None)
    if quantization is not None:
        if (quantization.get("quant_method"), quantization.get("format")) != READABLE_QUANTIZATION:
            raise UserError(
                f"{path}: weights quantized by {quantization.get('quant_method')!r} cannot be expanded",
                "export the checkpoint that was quantized",
            )
        tensors = dequantize_tensors(tensors)
    stored = next((str(v.dtype).removeprefix("torch.") for v in tensors.values() if v.is_floating_point()), "float32")
    wanted = str(raw.pop(SOURCE_DTYPE, stored)) if dtype == "source" else dtype
    raw.pop(SOURCE_DTYPE, None)
    kind: torch.dtype = getattr(torch, wanted)
    raw["torch_dtype" if "torch_dtype" in raw else "dtype"] = wanted

    def load(name: str) -> Tensor:
        tensor = tensors[name]
        return (tensor.to(kind) if tensor.is_floating_point() else tensor).contiguous()

    width = torch.empty((), dtype=kind).element_size()
    sizes = {
        name: tensors[name].numel() * (width if tensors[name].is_floating_point() else tensors[name].element_size())
        for name in sorted(tensors)
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", raw)
    if (path / "generation_config.json").exists():
        shutil.copyfile(path / "generation_config.json", out / "generation_config.json")
    copy_companions(path, out)
    write_tensors(out, sizes, load, shard_bytes)
