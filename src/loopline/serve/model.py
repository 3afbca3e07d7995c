"""What is served: a checkpoint directory, or a release directory with its model and harness.

    served = ServedModel.load(Path("release"))

A release directory has `release.json`, `model/` and `harness.json`; anything else is a checkpoint: a directory that
`transformers` loads, the result of a command, or a .gguf file, with its own chat template, stop tokens and form of tool
calls. Not covered: choosing what to release (see `loopline.release`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loopline.base.files import read_json
from loopline.inference.engine import Engine, TorchEngine
from loopline.model.given import resolve_model
from loopline.model.start import import_checkpoint


def file_version(*paths: Path) -> str:
    """The first 16 hex digits of the sha256 of files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
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
        """Load a release directory, a checkpoint or a .gguf file. Raises `UserError` when it is none of them."""
        champion = path.name
        if (path / "release.json").exists():
            champion = str(read_json(path / "release.json").get("champion", champion))
        elif (path / "artifact.json").exists():
            champion = str(read_json(path / "artifact.json").get("stage", champion))
        harness = path / "harness.json"
        with TemporaryDirectory() as converted:
            checkpoint = resolve_model(str(path), Path())
            weights = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
            version = file_version(*weights)
            if checkpoint.is_file():
                import_checkpoint(checkpoint, Path(converted))
                checkpoint = Path(converted)
            engine = TorchEngine.from_checkpoint(checkpoint, device=device)
        return cls(
            engine=engine,
            champion=champion,
            weights_version=version,
            harness_version=file_version(harness) if harness.exists() else "none",
            context=engine.model.config.max_position_embeddings,
            harness=read_json(harness) if harness.exists() else None,
        )

    def opening(
        self, turns: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """The turns to render, and the tools that the template is to offer.

        A policy released with a harness was trained on the tools that the harness names: for those it gets the
        harness's own system prompt, if any, and no schemas, so that the service shows it what training did.
        """
        if not tools or self.harness is None:
            return list(turns), tools or None
        known = set(self.harness.get("tools", ()))
        config = self.harness.get("config", self.harness)
        if config.get("offer_tools") or not {tool["function"]["name"] for tool in tools} <= known:
            return list(turns), tools
        prompt = str(config.get("system_prompt", ""))
        return [*([{"role": "system", "content": prompt}] if prompt else []), *turns], None
