"""A user's files and directories as inputs of a line, known by their content.

    path = find_input("chats.jsonl", folder, "recipe.yaml, line 7", "sft.data")
    artifact = read_input(path, "data", Digests(run_dir / "inputs.json"))

Not covered: what makes a checkpoint, and packages that hold one (see `model.given`).
"""

from __future__ import annotations

from pathlib import Path

from loopline.base.config import sha256_of
from loopline.base.errors import UserError
from loopline.model.given import PACKAGE, Digests, check_directory, checkpoint_digest, resolve_model
from loopline.store.artifact import MANIFEST, Artifact


def find_input(text: str, folder: Path, place: str, name: str) -> Path:
    """The path that a setting names, relative to the recipe's `folder`, else to where the command runs.

    Raises `UserError` naming `place` and the setting when nothing is there.
    """
    if text.startswith(PACKAGE):
        try:
            return resolve_model(text, folder)
        except UserError as error:
            raise UserError(f"{place}: {name}: {error.what}", error.fix) from error
    for path in (folder / Path(text).expanduser(), Path(text)):
        if path.exists():
            return path
    hub = text.count("/") == 1 and not text.startswith((".", "/")) and Path(text).suffix == ""
    raise UserError(
        f"{place}: {name} names {text}, and there is no such file or directory",
        "download the model first and give its directory" if hub else "check the path; it is relative to the recipe",
    )


def read_input(path: Path, role: str, digests: Digests) -> Artifact:
    """A user's file, checkpoint or artifact directory as an input. Raises `UserError` when it cannot be read."""
    if path.is_file():
        try:
            digest = digests.of(path)
        except OSError as error:
            fix = "give yourself the permission to read it"
            raise UserError(f"{path} cannot be read ({error.strerror})", fix) from error
        return Artifact(path, f"{role} file", "file", digest, digest)
    if (path / MANIFEST).exists():
        artifact = Artifact.load(path)
        return Artifact(path, role, artifact.kind, artifact.digest, artifact.digest, artifact.meta)
    if role.endswith("model") or (path / "config.json").exists():
        path = check_directory(path)
        digest = checkpoint_digest(path, digests)
        return Artifact(path, role, "checkpoint", digest, digest)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digest = sha256_of([[file.relative_to(path).as_posix(), digests.of(file)] for file in files])
    return Artifact(path, f"{role} directory", "directory", digest, digest)
