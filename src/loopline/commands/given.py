"""What a user hands in, as inputs of a line: a checkpoint directory and data files, known by their content.

    model = given_model(Path("qwen3-0.6b"), Digests(out / "inputs.json"))

Not covered: what makes a checkpoint (see `model.given`).
"""

from __future__ import annotations

from pathlib import Path

from loopline.base.errors import UserError
from loopline.model.given import Digests, checkpoint_digest, resolve_model
from loopline.store.artifact import Artifact


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


def given_model(path: Path, digests: Digests, option: str = "--model") -> Artifact:
    """A checkpoint directory. Raises `UserError` when it lacks a config, weights or a tokenizer."""
    try:
        found = resolve_model(str(path), Path("."))
    except UserError as error:
        raise UserError(error.what, f"{error.fix} ({option})") from error
    if found.is_file():
        raise UserError(f"{found} is a GGUF file", f"convert it first: loopline export {found} --out DIR ({option})")
    digest = checkpoint_digest(found, digests)
    return Artifact(found, "model", "checkpoint", digest, digest)
