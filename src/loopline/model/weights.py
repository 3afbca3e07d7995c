"""Tensors of a checkpoint directory: one `model.safetensors`, or shards that an index names.

Not covered: pickled weights (`pytorch_model.bin`), which run code when they are read.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in `path`, on the CPU. Raises `UserError` when a file is missing, damaged or lacks a tensor."""
    if (path / SINGLE).exists():
        return _read(path / SINGLE)
    if not (path / INDEX).exists():
        raise UserError(
            f"{path} has no model.safetensors", "point at a checkpoint directory with weights in safetensors files"
        )
    places = read_json(path / INDEX)["weight_map"]
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if not (path / shard).exists():
            raise UserError(f"{path} lacks {shard}, which {INDEX} names", "download the whole checkpoint")
        tensors |= _read(path / shard)
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise UserError(f"No shard in {path} holds {missing[0]}, which {INDEX} names", "download the checkpoint again")
    return tensors


def tensor_names(path: Path) -> frozenset[str]:
    """Names of the tensors in `path`, without reading them; none where there are no safetensors."""
    if (path / INDEX).exists():
        return frozenset(read_json(path / INDEX)["weight_map"])
    if not (path / SINGLE).exists():
        return frozenset()
    with safe_open(path / SINGLE, "pt") as file:
        return frozenset(file.keys())


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error})", "delete that artifact and run the line again") from error
