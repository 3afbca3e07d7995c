"""Contexts and artifacts for tests of single stages."""

from pathlib import Path

from loopline.base.files import write_json
from loopline.store.artifact import Artifact, content_digest
from loopline.store.context import Context

SHARED_DATA = next(
    (up / "shared" / "data" for up in Path(__file__).parents if (up / "shared" / "data").exists()), Path("none")
)
"""Public data sets beside the project, where they lie; tests that read them are skipped elsewhere."""


def make_context(path: Path, seed: int = 0, threads: int = 2, stage: str = "test") -> Context:
    """A context writing below `path`; calling it again with the same path resumes from its state."""
    return Context(stage, path / "out", path / "state", seed, threads)


def make_artifact(path: Path, stage: str = "x", kind: str = "x") -> Artifact:
    """Wrap a folder of files as an artifact."""
    path.mkdir(parents=True, exist_ok=True)
    digest = content_digest(path)
    write_json(
        path / "artifact.json",
        {"stage": stage, "kind": kind, "identity": digest, "digest": digest, "inputs": {}, "metrics": {}},
    )
    return Artifact.load(path)
