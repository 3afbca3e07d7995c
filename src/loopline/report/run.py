"""A run directory as the report reads it: the state of every stage, and the files of those that are done.

    run = Run.load(run_dir)
    run.json("plan", "plan.json")        # None unless that stage is done and has that file

A report is written for unfinished runs too, so every question has the answer "not there". Not covered: artifacts that
the run's board does not list, such as those of an earlier recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.files import read_json, read_jsonl
from loopline.pipeline import StageStatus, status
from loopline.store.artifact import Artifact
from loopline.store.lease import is_running


@dataclass(frozen=True)
class Run:
    """One run of the line."""

    path: Path
    name: str
    """The recipe's name."""
    seed: int
    rows: Sequence[StageStatus]
    """Every stage, in the order of the line."""
    artifacts: Mapping[str, Artifact]
    """Those that are done."""
    running: bool
    """Whether a process works on it now."""

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run. Raises `UserError` when there is none, or when the artifact of a finished stage is gone."""
        rows = status(path)
        recipe = read_json(path / "run.json")["recipe"]
        artifacts = {row.name: Artifact.load(path / row.path) for row in rows if row.state == "done" and row.path}
        return cls(path, recipe["name"], recipe["seed"], rows, artifacts, is_running(path))

    def of_kind(self, *kinds: str) -> list[StageStatus]:
        """The nodes of these stage kinds, in the order of the line."""
        return [row for row in self.rows if row.kind in kinds]

    def last(self, *kinds: str) -> str:
        """The newest finished node of these kinds; without one a name that no node has."""
        return next((row.name for row in reversed(self.of_kind(*kinds)) if row.name in self.artifacts), "")

    def evaluations(self) -> dict[str, str]:
        """Evaluated node -> its newest finished evaluation's node, in the order in which they were evaluated first."""
        found: dict[str, str] = {}
        for row in self.of_kind("evaluate"):
            if row.name in self.artifacts:
                found[row.inputs.get("checkpoint", row.name)] = row.name
        return found

    def file(self, stage: str, name: str) -> Path | None:
        """A file of a finished stage."""
        artifact = self.artifacts.get(stage)
        if artifact is None or not (artifact / name).exists():
            return None
        return artifact / name

    def json(self, stage: str, name: str) -> Any | None:
        """A JSON file of a finished stage."""
        file = self.file(stage, name)
        return None if file is None else read_json(file)

    def jsonl(self, stage: str, name: str) -> list[Any] | None:
        """The rows of a JSON lines file of a finished stage."""
        file = self.file(stage, name)
        return None if file is None else read_jsonl(file)

    def log(self, stage: str) -> Path | None:
        """The curve of a stage: of its artifact, or of its unfinished attempt."""
        if stage in self.artifacts:
            return self.file(stage, "log/metrics.jsonl")
        attempts = (self.path / "work").glob(f"{stage}-*/out/log/metrics.jsonl")
        # Of several attempts (another recipe left one behind) the one that was written to last is meant.
        return max(attempts, key=lambda file: (file.stat().st_mtime_ns, str(file)), default=None)

    def where(self, stage: str) -> str | None:
        """A finished stage's directory, relative to the run's."""
        artifact = self.artifacts.get(stage)
        return None if artifact is None else artifact.path.relative_to(self.path).as_posix()
