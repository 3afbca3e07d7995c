"""The stage that brings in a checkpoint from outside, as it is or converted from GGUF.

Its artifact is an ordinary checkpoint directory, so every later stage is the same for a model of our own and for one
from outside. Not covered: downloading.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.base.files import read_json
from loopline.model.start import import_checkpoint
from loopline.posttrain.start_config import StartConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context


def start(config: StartConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write the checkpoint that `inputs["model"]` names into the artifact."""
    how = import_checkpoint(inputs["model"].path, ctx.out, config.dtype)
    architecture = str(read_json(ctx.out / "config.json").get("model_type"))
    ctx.metrics.summary(headline=f"{architecture}, {how}", architecture=architecture, how=how)
