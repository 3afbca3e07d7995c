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
    before, after = (sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (source, ctx.out))
    share = f"{after / 1e6:,.1f} MB, {after / before:.0%} of what it was"
    ctx.metrics.summary(headline=share, bytes_before=before, bytes_after=after)
