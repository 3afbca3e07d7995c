"""Tensors of a checkpoint directory: one `model.safetensors`, or shards that an index names.

    tensors = read_tensors(path)
    write_tensors(out, {name: SIZE_IN_BYTES, ...}, tensors.__getitem__)      # shards above the limit

Not covered: pickled weights (`pytorch_model.bin`), which run code when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_bytes, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest file of weights, unless asked otherwise: a shard is built in memory before it is written."""


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


def write_tensors(out: Path, sizes: Mapping[str, int], load: Callable[[str], Tensor], limit: int = SHARD_BYTES) -> None:
    """Write tensors into `out` in the order of `sizes` (bytes, by name): one file, or shards of at most `limit` bytes.

    `load` is called once for each name, so that only one shard is in memory. A tensor above the limit has a shard of
    its own. Weights that lay there before are removed.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]
    for file, names in zip(files, shards, strict=True):
        write_bytes(out / file, save({name: load(name) for name in names}, metadata={"format": "pt"}))
    if count > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(out / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    for old in {*out.glob("model*.safetensors"), *out.glob(INDEX)}:
        if old.name not in (*files, *([INDEX] if count > 1 else [])):
            old.unlink()


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
