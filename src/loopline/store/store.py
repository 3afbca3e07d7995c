"""The store: artifacts by identity, committed by one rename, with movable names and an index that can be rebuilt.

    store = Store(run_dir)
    attempt = store.begin(key)
    ...                                   # the stage writes attempt.out
    artifact = store.commit(attempt, kind, metrics)

Layout: `store/<stage>/<identity12>/` holds artifacts, `work/<stage>-<identity12>/` attempts (`out` becomes the
artifact, `state` survives crashes), `refs/<name>` movable pointers, `index.sqlite` a view over the manifests, never
the truth. A crash between any two writes leaves either the whole artifact or none. Not covered: sharing between
machines, garbage collection.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import PARTIAL, read_json, to_json, write_json
from loopline.store.artifact import MANIFEST, VOLATILE, Artifact, content_digest, content_files
from loopline.store.why import BuildKey, Change, compare


@dataclass
class Attempt:
    """One try at an artifact."""

    key: BuildKey
    path: Path
    started: float
    seconds_before: float

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def seconds(self) -> float:
        """Time spent on this artifact, earlier attempts included."""
        return self.seconds_before + time.monotonic() - self.started

    def beat(self) -> None:
        """Note the time spent, so that a killed attempt's share is not forgotten."""
        write_json(self.path / "seconds.json", round(self.seconds, 2))


LEFT = 3600.0
"""Age in seconds from which a half-written file has no writer any more."""


class Store:
    """All artifacts of a run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, stage: str, identity: str) -> Path:
        """Where the artifact of that identity lies, or will."""
        return self.root / "store" / stage / identity[:12]

    def workplace(self, key: BuildKey) -> Path:
        """Where attempts at the artifact lie."""
        return self.root / "work" / f"{key.stage}-{key.identity[:12]}"

    def find(self, key: BuildKey) -> Artifact | None:
        """The finished artifact of that identity: the node's own, or that of one of another name."""
        own = self.place(key.stage, key.identity)
        others = sorted((self.root / "store").glob(f"*/{key.identity[:12]}"))
        return next((Artifact.load(path) for path in [own, *others] if (path / MANIFEST).exists()), None)

    def begin(self, key: BuildKey) -> Attempt:
        """Open an attempt. What an earlier one left in `state` and `out/log` stays; other leftovers go."""
        path = self.workplace(key)
        out = path / "out"
        if out.exists():
            for leftover in out.iterdir():
                if leftover.name != VOLATILE:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        out.mkdir(parents=True, exist_ok=True)
        (path / "state").mkdir(exist_ok=True)
        spent = path / "seconds.json"
        return Attempt(key, path, time.monotonic(), float(read_json(spent)) if spent.exists() else 0.0)

    def commit(self, attempt: Attempt, kind: str, metrics: dict[str, Any], runtime: dict[str, Any]) -> Artifact:
        """Turn an attempt into an artifact: manifest last, then one rename."""
        key = attempt.key
        # After a power cut a manifest must not vouch for bytes that never reached the disk.
        for file in content_files(attempt.out):
            _sync(attempt.out / file)
        manifest = {
            "schema": 1,
            "stage": key.stage,
            "stage_kind": key.kind,
            "kind": kind,
            "identity": key.identity,
            "digest": content_digest(attempt.out),
            "version": key.version,
            "seed": key.seed,
            "config": key.config,
            "inputs": key.inputs,
            "metrics": metrics,
            "environment": {**environment(), **runtime},
            "seconds": round(attempt.seconds, 2),
            "finished": round(time.time(), 3),
        }
        write_json(attempt.out / MANIFEST, manifest)
        target = self.place(key.stage, key.identity)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not (target / MANIFEST).exists():
            # An artifact deleted by hand, but not to the end, would be in the way.
            shutil.rmtree(target)
        os.replace(attempt.out, target)
        _sync(target.parent)
        shutil.rmtree(attempt.path)
        return Artifact.load(target)

    def sweep(self) -> None:
        """Remove what crashes leave: attempts whose artifact exists, and files that were never written to the end.

        Only who holds the lease may. Beside the attempts others write, too (a report, a service), so there a file must
        have lain for `LEFT` seconds.
        """
        for partial in (self.root / "work").rglob(f".*{PARTIAL}"):
            partial.unlink()
        for partial in self.root.glob(f".*{PARTIAL}"):
            # Its writer may be done with it by now.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > LEFT:
                    partial.unlink()
        for work in sorted((self.root / "work").glob("*")):
            stage, _, identity = work.name.rpartition("-")
            if (self.root / "store" / stage / identity / MANIFEST).exists():
                shutil.rmtree(work)

    def artifacts(self, stage: str | None = None) -> list[Artifact]:
        """Every finished artifact, newest last."""
        manifests = (self.root / "store").glob(f"{stage or '*'}/*/{MANIFEST}")
        found = [Artifact.load(path.parent) for path in sorted(manifests)]
        return sorted(found, key=lambda artifact: (artifact.meta.get("finished", 0), str(artifact.path)))

    def changes(self, key: BuildKey) -> list[Change] | None:
        """What differs from the stage's latest other artifact; None when it never ran, [] when it never finished."""
        earlier = [item for item in self.artifacts(key.stage) if item.identity != key.identity]
        if earlier:
            return compare(BuildKey.of_manifest(earlier[-1].meta), key)
        return [] if self.workplace(key).exists() else None

    def verify(self) -> list[str]:
        """Paths of artifacts whose content no longer has the digest in their manifest."""
        return [
            item.path.relative_to(self.root).as_posix()
            for item in self.artifacts()
            if content_digest(item.path) != item.digest
        ]

    def set_ref(self, name: str, artifact: Artifact) -> None:
        """Point `name` at an artifact."""
        write_json(
            self.root / "refs" / f"{name}.json",
            {"path": artifact.path.relative_to(self.root).as_posix(), "digest": artifact.digest},
        )

    def ref(self, name: str) -> Artifact:
        """The artifact `name` points at. Raises `UserError` when nothing has that name."""
        file = self.root / "refs" / f"{name}.json"
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.json"))) or "none yet"
            raise UserError(f"There is no ref {name!r} in {self.root}", f"use one of: {known}")
        return Artifact.load(self.root / read_json(file)["path"])

    def rebuild_index(self) -> Path:
        """Write `index.sqlite` anew from the manifests."""
        temporary, final = self.root / ".index.sqlite", self.root / "index.sqlite"
        temporary.unlink(missing_ok=True)
        rows = [
            (
                item.stage,
                item.kind,
                item.identity,
                item.digest,
                item.path.relative_to(self.root).as_posix(),
                item.meta["seconds"],
                item.meta["finished"],
                to_json(item.meta["config"]),
                to_json(item.meta["metrics"]),
            )
            for item in self.artifacts()
        ]
        with closing(sqlite3.connect(temporary)) as database:
            database.execute(
                "CREATE TABLE artifacts (stage TEXT, kind TEXT, identity TEXT PRIMARY KEY, digest TEXT, path TEXT, "
                "seconds REAL, finished REAL, config TEXT, metrics TEXT)"
            )
            database.executemany("INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            database.commit()
        os.replace(temporary, final)
        return final


def environment() -> dict[str, str]:
    """Versions that results may depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("loopline", "torch", "numpy", "tokenizers")}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def _sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a directory's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
