"""The files a release carries over: those that make a checkpoint, and the licence it came under.

    copy_checkpoint(source, target)
    find_licence([champion, start])       # ("apache-2.0", the LICENSE file)

Not covered: weights in pickles.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from loopline.base.errors import UserError
from loopline.base.files import read_json
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
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
LICENCE_KEY = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)
TITLES = {
    "apache-2.0": r"apache license\W+version 2",
    "mit": r"\bmit license\b",
    "bsd-3-clause": r"bsd 3-clause",
    "cc-by-4.0": r"attribution 4\.0 international",
}


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


def find_licence(folders: Sequence[Path]) -> tuple[str | None, Path | None]:
    """(identifier, LICENSE file) of the first checkpoint directory that says what it is licensed under."""
    for folder in folders:
        file = next(iter(sorted(folder.glob("LICEN[CS]E*"))), None)
        named = _named(folder)
        if named is None and file is not None:
            text = file.read_text(encoding="utf-8", errors="replace")[:2000].lower()
            named = next((name for name, title in TITLES.items() if re.search(title, text)), "other")
        if named is not None:
            return named, file
    return None, None


def _named(folder: Path) -> str | None:
    """What a checkpoint's README (its front matter) or config.json says."""
    for name in ("README.md", "MODEL_CARD.md"):
        if (folder / name).exists():
            front = FRONT_MATTER.search((folder / name).read_text(encoding="utf-8", errors="replace"))
            found = LICENCE_KEY.search(front[1]) if front else None
            if found:
                return found[1].lower()
    stated = read_json(folder / "config.json").get("license") if (folder / "config.json").exists() else None
    return str(stated).lower() if stated else None
