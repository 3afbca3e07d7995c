"""Quantization: a checkpoint with int8 linear weights.

    - quantize: {}
      from: align

Not covered: training a smaller model (see `posttrain.reject`).
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.distill.config import QuantizeConfig
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.store.artifact import Artifact
from loopline.store.context import Context


def quantize(config: QuantizeConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write a checkpoint with int8 linear weights."""
    del config
    source = inputs["checkpoint"].path
    save_checkpoint(load_model(source), source, ctx.out, int8=True)
    before = (source / "model.safetensors").stat().st_size
    after = (ctx.out / "model.safetensors").stat().st_size
    ctx.metrics.summary(bytes_before=before, bytes_after=after)
