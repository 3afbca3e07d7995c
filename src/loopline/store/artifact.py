"""Artifacts: directories of files in formats others read, with `artifact.json` written last.

    artifact = Artifact.load(path)
    weights = artifact / "model.safetensors"

No `artifact.json`, no artifact: whatever else lies in a directory is an unfinished attempt. The content digest covers
every file but the manifest and the `log/` folder, which holds what legitimately differs between equal runs (times,
measured speeds). Not covered: where artifacts live and how they are committed (see `store.store`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, to_json

MANIFEST = "artifact.json"
VOLATILE = "log"


@dataclass(frozen=True)
class Artifact:
    """One finished output of a stage."""

    path: Path
    """Its directory."""
    stage: str
    """Name of the stage that wrote it."""
    kind: str
    """What it holds: checkpoint, corpus, evaluation..."""
    identity: str
    """sha256 of what it was made from: stage, version, config, seed, inputs' digests."""
    digest: str
    """sha256 of what it contains."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The whole manifest."""

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Read a directory's manifest. Raises `UserError` when it has none."""
        if not (path / MANIFEST).exists():
            raise UserError(f"{path} is not a finished artifact: it has no {MANIFEST}", "run the stage that writes it")
        meta = read_json(path / MANIFEST)
        return cls(path, meta["stage"], meta["kind"], meta["identity"], meta["digest"], meta)


def content_files(path: Path) -> list[Path]:
    """The files that count as content, as sorted relative paths."""
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if file.parts[0] != VOLATILE and file != Path(MANIFEST))


def content_digest(path: Path) -> str:
    """sha256 over (relative path, sha256 of bytes) of every content file."""
    listing = []
    for file in content_files(path):
        with (path / file).open("rb") as handle:
            listing.append([file.as_posix(), hashlib.file_digest(handle, "sha256").hexdigest()])
    return hashlib.sha256(to_json(listing).encode()).hexdigest()
