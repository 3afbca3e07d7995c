"""The files a release carries over: those that make a checkpoint.

    copy_checkpoint(source, target)

Not covered: weights in pickles.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from loopline.base.errors import UserError
from loopline.model.checkpoint import TOKENIZER_FILES
from loopline.model.weights import INDEX
from loopline.release.evidence import weight_files

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    INDEX,
    *TOKENIZER_FILES,
)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy every file that makes a checkpoint, its shards included, and nothing a stage left beside them.

    Raises `UserError` when a shard is missing.
    """
    if not (source / "config.json").exists():
        raise UserError(f"{source} is no checkpoint: it has no config.json", "release a checkpoint directory")
    target.mkdir(parents=True, exist_ok=True)
    named = [source / name for name in CHECKPOINT_FILES if (source / name).exists()]
    # Code and vocabularies that a stock checkpoint brings under names of its own.
    own = [*source.glob("*.py"), *source.glob("*.tiktoken"), *source.glob("*.spm"), *source.glob("LICEN[CS]E*")]
    for file in dict.fromkeys([*named, *weight_files(source), *sorted(own)]):
        if not (target / file.name).exists() or (target / file.name).stat().st_size != file.stat().st_size:
            shutil.copyfile(file, target / file.name)
