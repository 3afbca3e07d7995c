"""Settings of quantization. Imports no torch."""

from __future__ import annotations

from loopline.base.config import Config
from loopline.base.stage import Takes, stage


@stage(
    "quantize",
    run="loopline.distill.stage:quantize",
    takes={"checkpoint": Takes("checkpoint")},
    gives="checkpoint",
    area=8,
)
class QuantizeConfig(Config):
    """int8 weights; nothing to set yet."""
