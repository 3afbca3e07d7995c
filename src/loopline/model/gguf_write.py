"""A checkpoint directory as one GGUF file, for llama.cpp and what is built on it.

    export_gguf(path, Path("model-q8_0.gguf"), "q8_0")          # needs the extra "gguf"

Matrices get the type asked for, vectors stay in 32 bits as llama.cpp wants them. Tokenizer, chat template, the ids that
end a turn and the licence go along. Equal checkpoints give equal bytes. Not covered: quantization below 8 bits (run
llama.cpp's `llama-quantize` on the F16 file), architectures besides Llama, Qwen2 and Qwen3.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import PARTIAL, read_json
from loopline.model.config import ModelConfig, unsupported
from loopline.model.gguf_layout import ROPE_FREQS, metadata_of, require_gguf, rope_freqs_of, tensor_names, to_gguf_order
from loopline.model.gguf_tokenizer import tokenizer_metadata
from loopline.model.layout import split_fused_experts
from loopline.model.licence import licence_of
from loopline.model.quantization import dequantize_tensors
from loopline.model.weights import read_tensors

GGUFType = Literal["f32", "f16", "bf16", "q8_0"]
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""What the package `gguf` calls a file of mostly this type."""
LARGEST_F16 = 65504.0


def export_gguf(path: Path, out: Path, kind: GGUFType = "f16", name: str | None = None) -> None:
    """Write the checkpoint in the directory `path` as the file `out`; `name` is what the file calls the model.

    Raises `UserError` for an architecture or a tokenizer that llama.cpp would compute differently, weights that do not
    fit the type, and a missing package.
    """
    gguf = require_gguf()
    raw = read_json(path / "config.json")
    if lacking := unsupported(raw):
        raise UserError(f"{path}: {lacking} has no form in this GGUF export", "export to safetensors")
    config = ModelConfig.from_huggingface(path)
    entries: dict[str, Any] = {"general.type": "model"}
    if name:
        entries["general.name"] = name
    if licence := licence_of(path):
        entries["general.license"] = licence
    entries["general.file_type"] = int(getattr(gguf.LlamaFileType, FILE_TYPES[kind]))
    if kind == "q8_0":
        entries["general.quantization_version"] = int(gguf.GGML_QUANT_VERSION)
    entries |= {f"{config.family}.{key}": value for key, value in metadata_of(config).items()}
    entries |= tokenizer_metadata(path, config.vocab_size)

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}{PARTIAL}")
    writer = gguf.GGUFWriter(temporary, config.family)
    for key, value in entries.items():
        _add(writer, key, value)
    if (freqs := rope_freqs_of(config)) is not None:
        writer.add_tensor(ROPE_FREQS, freqs)
    tensors = split_fused_experts(dequantize_tensors(read_tensors(path)))
    for theirs, ours in tensor_names(config).items():
        if theirs not in tensors:
            raise UserError(f"{path} has no tensor {theirs}, which its config.json promises", "save it again")
        values = to_gguf_order(theirs, tensors.pop(theirs).float(), config).contiguous()
        data, stored = _stored(gguf, values, kind, f"{path}: {theirs}")
        writer.add_tensor(ours, data, raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _stored(gguf: Any, values: Tensor, kind: GGUFType, name: str) -> tuple[np.ndarray[Any, Any], Any]:
    """A tensor's bytes in the type it gets, and that type."""
    types = gguf.GGMLQuantizationType
    wanted = types.F32 if values.dim() == 1 or kind == "f32" else getattr(types, kind.upper())
    if wanted == types.Q8_0 and values.shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0]:
        wanted = types.F16  # rows that do not fill whole blocks
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{name} holds values that are not finite", "export a checkpoint from before they appeared")
    if wanted == types.F16 and float(values.abs().max()) > LARGEST_F16:
        raise UserError(f"{name} holds values beyond 65,504, the largest of f16", "export with the type bf16 or f32")
    array = values.numpy()
    if wanted == types.F32:
        return array, wanted
    if wanted == types.F16:
        return array.astype(np.float16), wanted
    return gguf.quants.quantize(array, wanted), wanted


def _add(writer: Any, key: str, value: Any) -> None:
    """One entry of metadata, in the type that llama.cpp reads it in."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
