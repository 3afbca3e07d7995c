"""Settings of quantization and pruning. Imports no torch."""

from __future__ import annotations

from pydantic import Field

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


@stage(
    "prune",
    run="loopline.distill.prune:prune",
    takes={"checkpoint": Takes("checkpoint")},
    gives="checkpoint",
    area=8,
)
class PruneConfig(Config):
    """A shallower copy of a checkpoint, as the start of a student: some of its layers, evenly spaced."""

    layers: int = Field(ge=1)
    """Layers to keep."""
