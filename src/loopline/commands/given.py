"""What a user hands in, as inputs of a line: a checkpoint directory and data files, known by their content.

    model = given_model(Path("qwen3-0.6b"), Digests(out / "inputs.json"))

A second look at an unchanged file reads its digest from the cache instead of the file. Not covered: names of models on
a hub; download them first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from loopline.base.config import sha256_of
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.store.artifact import Artifact

FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "chat_template.*", "adapter_*.json",
)  # fmt: skip
"""What a checkpoint directory consists of; whatever else lies beside it does not count."""


class Digests:
    """sha256 of files, remembered by path, size and time of change."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        try:
            self.known: dict[str, Any] = read_json(cache)
        except UserError:
            self.known = {}

    def of(self, path: Path) -> str:
        """sha256 (hex) of a file's bytes."""
        facts = path.stat()
        stamp = [facts.st_size, facts.st_mtime_ns]
        key = str(path.absolute())
        entry = self.known.get(key)
        if entry is None or entry["stamp"] != stamp:
            with path.open("rb") as file:
                entry = {"stamp": stamp, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            self.known[key] = entry
        return str(entry["sha256"])

    def save(self) -> None:
        """Write the cache; it speeds up the next command and is no part of the run."""
        write_json(self.cache, self.known)


def given_file(path: Path, role: str, digests: Digests) -> Artifact:
    """A data file. Raises `UserError` when it cannot be read."""
    if not path.exists():
        raise UserError(f"There is no file {path}", f"check the path given with --{role}")
    if not path.is_file():
        raise UserError(f"{path} is not a file", f"give one file with --{role}")
    try:
        digest = digests.of(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror})", "give yourself the permission to read it"
        ) from error
    return Artifact(path, f"{role} file", "file", digest, digest)


def model_directory(path: Path) -> Path:
    """The checkpoint meant by `path`: itself, or the result of the command whose --out it was."""
    inner = path / "model"
    return inner if not (path / "config.json").exists() and (inner / "config.json").exists() else path


def given_model(path: Path, digests: Digests, option: str = "--model") -> Artifact:
    """A checkpoint directory. Raises `UserError` when it lacks a config, weights or a tokenizer."""
    if not path.is_dir():
        hint = "download the model first and give its directory" if len(path.parts) == 2 else "check the path"
        raise UserError(f"There is no model directory {path}", f"{hint} ({option})")
    path = model_directory(path)
    if not (path / "config.json").exists():
        raise UserError(f"{path} has no config.json, so it is no checkpoint", f"give a checkpoint directory ({option})")
    if not list(path.glob("*.safetensors")):
        raise UserError(
            f"{path} has no weights in safetensors files",
            "save the model with `save_pretrained(..., safe_serialization=True)`",
        )
    if not (path / "tokenizer.json").exists():
        raise UserError(
            f"The model directory {path} has no tokenizer (tokenizer.json)",
            "copy the tokenizer files of the model's origin beside its weights, or write them with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
        )
    files = sorted({file for pattern in FILES for file in path.glob(pattern)})
    digest = sha256_of([[file.name, digests.of(file)] for file in files])
    return Artifact(path, "model", "checkpoint", digest, digest)
