"""Settings of the stage that brings in a checkpoint from outside. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from loopline.base.config import Config, InputFile
from loopline.base.stage import stage


@stage("start", run="loopline.posttrain.start:start", gives="checkpoint", area=5)
class StartConfig(Config):
    """An open-weights model as the first checkpoint: a directory that `transformers` loads, or a GGUF file."""

    model: Annotated[str, InputFile()]
    """A checkpoint directory, a .gguf file, or `package:NAME` for the .gguf file inside an installed package."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights that are expanded from GGUF; a directory keeps its own."""
