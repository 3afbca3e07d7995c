"""What is served: a checkpoint directory, or a release directory with its model and harness.

    served = ServedModel.load(Path("release"))

A release directory has `release.json`, `model/` and `harness.json`; anything with `config.json` and
`model.safetensors` is a checkpoint. Not covered: choosing what to release (see `loopline.release`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.inference.engine import Engine, TorchEngine


def file_version(path: Path) -> str:
    """The first 16 hex digits of a file's sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ServedModel:
    """An engine with the names and versions that its answers are recorded under."""

    engine: Engine
    champion: str
    """The checkpoint's own name."""
    weights_version: str
    harness_version: str
    context: int
    """Longest sequence in tokens."""
    harness: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> ServedModel:
        """Load a checkpoint or release directory. Raises `UserError` when it is neither."""
        checkpoint = path / "model" if (path / "release.json").exists() else path
        if not (checkpoint / "config.json").exists():
            raise UserError(
                f"{path} is neither a checkpoint (config.json, model.safetensors) nor a release (release.json, model/)",
                "point at one, or run the line up to its release stage",
            )
        champion = path.name
        if (path / "release.json").exists():
            champion = str(read_json(path / "release.json").get("champion", champion))
        elif (path / "artifact.json").exists():
            champion = str(read_json(path / "artifact.json").get("stage", champion))
        harness = path / "harness.json"
        engine = TorchEngine.from_checkpoint(checkpoint, device=device)
        return cls(
            engine=engine,
            champion=champion,
            weights_version=file_version(checkpoint / "model.safetensors"),
            harness_version=file_version(harness) if harness.exists() else "none",
            context=engine.model.config.max_position_embeddings,
            harness=read_json(harness) if harness.exists() else None,
        )
