"""Settings of the export of a checkpoint. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.base.config import Config
from loopline.base.stage import Takes, stage


@stage(
    "export",
    run="loopline.release.export:export",
    takes={"policy": Takes("checkpoint")},
    gives="export",
    area=9,
)
class ExportConfig(Config):
    """A checkpoint in the form others take it: safetensors in shards, or a GGUF file for llama.cpp."""

    to: Literal["safetensors", "gguf"] = "safetensors"
    """The format."""
    type: Literal["f16", "q8_0", "f32", "bf16"] = "f16"
    """Type of the matrices in a GGUF file."""
    dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    """Type of the weights in safetensors; "source" is that of the checkpoint the line started from."""
    shard_gb: float = Field(default=5.0, gt=0)
    """Largest safetensors file, in 1e9 bytes."""
    name: str = Field(default="model", pattern=r"^[\w.-]+$")
    """What a GGUF file calls the model; its file is NAME-TYPE.gguf."""
