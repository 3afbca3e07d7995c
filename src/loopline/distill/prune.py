"""A shallower copy of a checkpoint, as the start of a student: some of its layers, evenly spaced, the rest left out.

    - prune: {layers: 15}
      from: start

Students that begin with every second layer of their teacher learn faster than from random weights (Sanh et al. 2019,
DistilBERT, arXiv:1910.01108). The copy is damaged and wants training. Works on tensor names, so on every architecture
that numbers its layers. Not covered: narrower layers, choosing layers by what they do.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_bytes, write_json
from loopline.distill.config import PruneConfig
from loopline.model.given import checkpoint_files
from loopline.model.weights import read_tensors
from loopline.store.artifact import Artifact
from loopline.store.context import Context

LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks)\.)(\d+)(\..*)$")
"""Tensor names of a layer: prefix, number, rest."""
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
"""Keys of config.json that hold the number of layers."""


def prune(config: PruneConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write the checkpoint with `config.layers` of its layers. Raises `UserError` when it has fewer."""
    source = inputs["checkpoint"].path
    settings = read_json(source / "config.json")
    depth = int(next((settings[key] for key in DEPTHS if key in settings), 0))
    if config.layers >= depth:
        raise UserError(f"{source} has {depth} layers, and prune.layers is {config.layers}", "keep fewer than it has")
    kept = kept_layers(depth, config.layers)
    tensors = keep_tensors(read_tensors(source), kept)
    for file in checkpoint_files(source):
        if file.suffix != ".safetensors" and file.name not in ("config.json", "model.safetensors.index.json"):
            ctx.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, ctx.out / file.name)
    write_json(ctx.out / "config.json", shallower(settings, depth, kept))
    write_bytes(ctx.out / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    parameters = sum(value.numel() for value in tensors.values())
    headline = f"{config.layers} of {depth} layers, {parameters:,} parameters"
    ctx.metrics.summary(headline=headline, parameters=parameters, layers=list(kept))


def kept_layers(depth: int, count: int) -> tuple[int, ...]:
    """`count` of the layers 0 .. depth - 1, evenly spaced, the first and the last among them."""
    if count == 1:
        return (0,)
    return tuple(round(number * (depth - 1) / (count - 1)) for number in range(count))


def keep_tensors(tensors: Mapping[str, Tensor], kept: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of the kept layers under their new numbers, and those of no layer as they are."""
    places = {old: new for new, old in enumerate(kept)}
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = LAYER.match(name)
        if match is None:
            found[name] = value.contiguous()
        elif int(match[2]) in places:
            found[f"{match[1]}{places[int(match[2])]}{match[3]}"] = value.contiguous()
    return found


def shallower(settings: Mapping[str, Any], depth: int, kept: tuple[int, ...]) -> dict[str, Any]:
    """config.json for the kept layers: the depth, and every list that has an entry per layer."""
    found = dict(settings)
    for key, value in settings.items():
        if key in DEPTHS:
            found[key] = len(kept)
        elif isinstance(value, list) and len(value) == depth:
            found[key] = [value[number] for number in kept]
    return found
