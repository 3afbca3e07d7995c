"""A GGUF file (llama.cpp's format) as an ordinary checkpoint directory that every stage starts from.

    import_gguf(Path("model.gguf"), out, dtype="float32")      # needs the extra "gguf"

Quantized weights are expanded once; what was rounded stays rounded. The tokenizer, the chat template, the ids that end
a turn and the licence come out of the file's metadata. One shard is in memory at a time. Not covered: architectures
besides Llama, Qwen2 and Qwen3, files in several parts, adapters in GGUF.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_text
from loopline.model.config import ModelConfig
from loopline.model.gguf_layout import (
    ROPE_FREQS,
    config_of,
    from_gguf_order,
    require_gguf,
    tensor_names,
)
from loopline.model.gguf_tokenizer import generation_config, tokenizer_files
from loopline.model.licence import write_licence
from loopline.model.weights import SHARD_BYTES, write_tensors

Weights = Literal["float32", "bfloat16", "float16"]


class GGUFFile:
    """An opened GGUF file: `metadata` (key to value) and `tensors` (name to mapped, possibly quantized array).

    Raises `UserError` when it is no GGUF file, is cut short, or needs a package.
    """

    def __init__(self, path: Path) -> None:
        self.gguf = require_gguf()
        self.path = path
        try:
            reader = self.gguf.GGUFReader(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{path} cannot be read as a GGUF file ({error})", "download the file again") from error
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self.tensors.items()}

    def config(self) -> ModelConfig:
        """The decoder it holds. Raises `UserError` for one that is not covered or tensors that do not belong to it."""
        if "token_embd.weight" not in self.shapes:
            raise UserError(f"{self.path} has no token_embd.weight, so it holds no language model", "give another file")
        freqs = self.values(ROPE_FREQS) if ROPE_FREQS in self.tensors else None
        try:
            config = config_of(self.metadata, self.shapes, freqs)
        except UserError as error:
            raise UserError(f"{self.path}: {error.what}", error.fix) from error
        expected = set(tensor_names(config).values())
        missing, unknown = sorted(expected - set(self.tensors)), sorted(set(self.tensors) - expected - {ROPE_FREQS})
        if missing or unknown:
            what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which its architecture does not"
            raise UserError(f"{self.path} {what}", "use the model's checkpoint in safetensors")
        return config

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor in float32, rows first. Raises `UserError` for a quantization that cannot be expanded."""
        tensor = self.tensors[name]
        try:
            found = self.gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: {name} is quantized as {tensor.tensor_type.name}, which gguf cannot expand",
                "use a file with another quantization, such as Q8_0 or Q4_K",
            ) from error
        return np.asarray(found, dtype=np.float32).reshape(self.shapes[name])


def import_gguf(path: Path, out: Path, dtype: Weights = "float32", shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of a GGUF file into the directory `out`, as `transformers` has it, with weights in `dtype`.

    Raises `UserError` for what cannot be read, is not covered or does not fit together.
    """
    file = GGUFFile(path)
    config = file.config()
    try:
        files = tokenizer_files(file.metadata)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.fix) from error
    generation = generation_config(file.metadata)
    raw = config.to_huggingface() | {"dtype": dtype}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        raw.pop(key, None)
    raw |= generation
    kind: torch.dtype = getattr(torch, dtype)
    places = tensor_names(config)

    def load(name: str) -> Tensor:
        values = torch.from_numpy(np.array(file.values(places[name])))
        return from_gguf_order(name, values, config).to(kind).contiguous()

    width = torch.empty((), dtype=kind).element_size()
    sizes = {name: int(np.prod(file.shapes[places[name]])) * width for name in sorted(places)}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", raw)
    write_json(out / "generation_config.json", generation)
    for name, value in files.items():
        if isinstance(value, str):
            write_text(out / name, value)
        else:
            write_json(out / name, value)
    write_licence(out, file.metadata)
    write_tensors(out, sizes, load, shard_bytes)
