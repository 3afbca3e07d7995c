"""The stage, and the command, that write a checkpoint in the form others take it.

    export_checkpoint(ExportConfig(to="gguf", type="q8_0"), checkpoint_dir, out)

Not covered: uploading to a hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from loopline.base.errors import UserError
from loopline.model.export import export_safetensors
from loopline.model.gguf_read import import_gguf
from loopline.model.gguf_write import export_gguf
from loopline.model.given import resolve_model
from loopline.release.export_config import ExportConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context


def export(config: ExportConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write the exported files into the artifact."""
    files = export_checkpoint(config, inputs["policy"].path, ctx.out)
    ctx.metrics.summary(files=len(files), bytes=sum(file.stat().st_size for file in files))


def export_checkpoint(config: ExportConfig, path: Path, out: Path) -> list[Path]:
    """Export the checkpoint directory `path` into the directory `out`; gives the files written.

    Raises `UserError` for what the format cannot hold.
    """
    if config.to == "gguf":
        file = out / f"{config.name}-{config.type}.gguf"
        export_gguf(path, file, config.type, None if config.name == "model" else config.name)
        return [file]
    export_safetensors(path, out, config.dtype, int(config.shard_gb * 1e9))
    return sorted(file for file in out.iterdir() if file.is_file())


def export_model(model: str, out: Path, **settings: str) -> list[Path]:
    """`export_checkpoint` of a directory, a .gguf file or `package:NAME`, with settings as a command line has them."""
    try:
        config = ExportConfig.model_validate(settings)
    except ValidationError as error:
        found = error.errors()[0]
        raise UserError(
            f"--{found['loc'][0]} {found['input']}: {found['msg']}", "see loopline export --help"
        ) from error
    path = resolve_model(model, Path("."))
    if path.is_dir():
        return export_checkpoint(config, path, out)
    with tempfile.TemporaryDirectory() as folder:
        import_gguf(path, Path(folder))
        return export_checkpoint(config, Path(folder), out)
