"""Checkpoint directories that `transformers` loads: config.json, safetensors, generation_config.json, tokenizer.

    model = load_model(path)                            # float32 unless asked otherwise
    save_checkpoint(model, tokenizer_dir, out)          # the names and the config.json that it was read with

Llama, Qwen2, Qwen3 and Qwen3-MoE become a `Decoder`, everything else a `HuggingFaceModel` (needs the extra "hf"), and a
directory of `...ForSequenceClassification` a `ScoreModel`. The bytes depend on the weights only, so equal weights give
equal files; above a limit they are written in shards. Not covered: weights in pickles.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.model.config import ModelConfig, unsupported
from loopline.model.decoder import Decoder
from loopline.model.given import LICENCE_FILES
from loopline.model.language_model import SOURCE_DTYPE, LanguageModel, Source, source_dtype
from loopline.model.layout import from_huggingface, pieces, split_fused_experts
from loopline.model.quantization import QUANTIZATION_CONFIG, dequantize_tensors, quantize_tensors
from loopline.model.weights import SHARD_BYTES, read_tensors, write_tensors

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Files of a tokenizer that a checkpoint carries on; ours has the first two."""
SCORE_SUFFIX = "ForSequenceClassification"


def save_checkpoint(
    model: LanguageModel,
    tokenizer_dir: Path,
    out: Path,
    int8: bool = False,
    dtype: torch.dtype | Literal["source"] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint directory; each file is written atomically. Tokenizer and licence come from `tokenizer_dir`.

    A model that was read from a directory keeps its tensor names, every key of its config.json and its
    generation_config.json. `dtype` None writes the weights as the model has them, "source" as they were on disk.
    `int8` quantizes the linear weights. Weights of more than `shard_bytes` are written in several files.
    """
    out.mkdir(parents=True, exist_ok=True)
    config, tensors = model.export()
    if dtype == "source":
        dtype = None if model.source is None else model.source.dtype
    if dtype is not None:
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    _name_dtype(config, tensors, None if model.source is None else model.source.dtype)
    config.pop("quantization_config", None)
    if int8:
        config, tensors = config | {"quantization_config": QUANTIZATION_CONFIG}, quantize_tensors(tensors)
    write_json(out / "config.json", config)
    generation = {"eos_token_id": 1, "pad_token_id": 0, "do_sample": True}
    if model.source is None or model.source.generation is not None:
        write_json(out / "generation_config.json", generation if model.source is None else model.source.generation)
    sizes = {name: value.numel() * value.element_size() for name, value in tensors.items()}
    write_tensors(out, sizes, tensors.__getitem__, shard_bytes)
    copy_companions(tokenizer_dir, out)


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template and licence from one checkpoint directory into another."""
    if source.resolve() == out.resolve():
        return
    for pattern in (*TOKENIZER_FILES, *LICENCE_FILES):
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def load_model(path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Read a checkpoint directory, in `dtype`.

    Raises `UserError` when files are missing or damaged, when the tensors are not those that the config promises, or
    when the architecture needs `transformers` and it is not installed.
    """
    path = Path(path)
    raw = read_json(path / "config.json")
    if unsupported(raw):
        from loopline.model.huggingface import load_huggingface

        return load_huggingface(path, device, dtype)
    config = ModelConfig.from_huggingface(path)
    stored = read_tensors(path)
    kept = {name: value.dtype for name, value in stored.items() if value.is_floating_point()}
    # Copies: what safetensors maps into memory is aligned to 8 bytes only, which changes the rounding of products.
    tensors = {name: value.to(dtype, copy=True) for name, value in dequantize_tensors(stored).items()}
    names = frozenset(stored)
    del stored
    generation = path / "generation_config.json"
    extra = {name: tensors.pop(name) for name in sorted(tensors) if name.endswith("rotary_emb.inv_freq")}
    origin = source_dtype(raw, next(iter(kept.values()), None))
    source = Source(raw, read_json(generation) if generation.exists() else None, names, origin, extra)
    scores = str((raw.get("architectures") or [""])[0]).endswith(SCORE_SUFFIX)
    score = tensors.pop("score.weight", None) if scores else None
    if config.tie_word_embeddings or scores:
        config = config.model_copy(update={"tie_word_embeddings": True})
        tensors.pop("lm_head.weight", None)
    model: LanguageModel = _fill(path, config, split_fused_experts(tensors))
    model.source = source
    if scores:
        from loopline.model.heads import ScoreModel

        if score is None:
            raise UserError(f"{path} has no score.weight", f"save it again: config.json calls it a {SCORE_SUFFIX}")
        model = ScoreModel(model, len(score), score)
    return model.to(device)


def _fill(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> Decoder:
    known = {name for piece in pieces(config) for name in piece.theirs}
    missing, unknown = sorted(known - set(tensors)), sorted(set(tensors) - known)
    if missing or unknown:
        found = [
            f"{words} {', '.join(names[:4])}" for words, names in (("no", missing), ("unexpected", unknown)) if names
        ]
        raise UserError(
            f"The weights in {path} are not the tensors that its config.json promises ({'; '.join(found)})",
            "save the checkpoint again, or correct the config.json",
        )
    with torch.device("meta"):
        model = Decoder(config)
    try:
        model.load_state_dict(from_huggingface(tensors, config), assign=True)
    except RuntimeError as error:
        raise UserError(
            f"The weights in {path} have other shapes than its config.json promises ({error})",
            "save the checkpoint again, or correct the config.json",
        ) from error
    return model


def _name_dtype(config: dict[str, Any], tensors: dict[str, Tensor], source: torch.dtype | None) -> None:
    """Let the config say the weights' type, under the key it has for it, and the source's where that is another."""
    kind = next(
        (str(value.dtype).removeprefix("torch.") for value in tensors.values() if value.is_floating_point()), ""
    )
    for key in ("dtype", "torch_dtype"):
        if key in config and kind:
            config[key] = kind
    config.pop(SOURCE_DTYPE, None)
    origin = str(source).removeprefix("torch.")
    if source is not None and kind and origin != kind:
        config[SOURCE_DTYPE] = origin
