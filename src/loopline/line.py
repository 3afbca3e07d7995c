"""Runs the line: every node whose ingredients changed, in order, resuming what a crash cut short.

    run_line(recipe, Path("runs/laptop"))

A node's identity is what it is made from, inputs by content; one already in the store is not run again, and a node that
reproduces the bytes it had stops the rebuild there. `run.json` tells the state of the line at any time. Not covered:
nodes in parallel, other machines (see `loopline.compute`).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loopline.base.config import identity_of
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.graph import LINE, ROOMS, StageSpec, upstream
from loopline.recipe import Recipe
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.store.lease import Lease, is_running
from loopline.store.store import Store
from loopline.store.why import Making, explain

FREE_BYTES = 200 * 2**20
"""Room below which a run is refused before it starts."""

REFS = (
    ("champion", "release", "loop_traffic", "retrain"),
    ("base", "pretrain", "loop_benchmarks", "pretrain_next"),
)
"""Name, the node it points at first, the loop that may move it, and the node it moves to."""


@dataclass(frozen=True)
class StageStatus:
    """One node's state."""

    name: str
    room: int
    stage: str
    """Title of the room."""
    state: str
    """pending, running, interrupted, failed, done."""
    seconds: float | None = None
    identity: str | None = None
    digest: str | None = None
    path: str | None = None
    """Artifact directory relative to the run directory."""
    why: str = ""
    """Why it ran when it last ran."""
    error: str = ""
    """What it failed with, if it did."""


def seed_of(recipe_seed: int, stage: str) -> int:
    """A stage's seed: its own, so that adding a stage does not shift the others."""
    return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{stage}".encode()).digest()[:4], "big") >> 1


def making_of(spec: StageSpec, recipe: Recipe, inputs: Mapping[str, Artifact]) -> Making:
    """Everything the node's identity covers."""
    return Making(
        spec.name,
        spec.version,
        seed_of(recipe.seed, spec.name),
        identity_of(recipe.section(spec.recipe_section)),
        {role: {"stage": item.stage, "digest": item.digest} for role, item in sorted(inputs.items())},
    )


class Board:
    """`run.json`: what every node of the line is up to."""

    def __init__(self, run_dir: Path, recipe: Recipe, line: Sequence[StageSpec]) -> None:
        self.file = run_dir / "run.json"
        self.recipe = {"name": recipe.name, "seed": recipe.seed}
        before = {row["name"]: row for row in read_json(self.file)["stages"]} if self.file.exists() else {}
        self.rows = {spec.name: StageStatus(spec.name, spec.room, ROOMS[spec.room], "pending") for spec in line}
        self.reasons = {name: row.get("why", "") for name, row in before.items()}

    def set(
        self,
        spec: StageSpec,
        state: str,
        why: str | None = None,
        artifact: Artifact | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Record a node's state. Without `why` the reason it last ran for stays."""
        if why is not None:
            self.reasons[spec.name] = why
        details: dict[str, Any] = {}
        if artifact is not None:
            details = {
                "seconds": artifact.meta["seconds"],
                "identity": artifact.identity,
                "digest": artifact.digest,
                "path": artifact.path.relative_to(self.file.parent).as_posix(),
            }
        if error is not None:
            details["error"] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        row = StageStatus(spec.name, spec.room, ROOMS[spec.room], state, why=self.reasons.get(spec.name, ""), **details)
        if row != self.rows[spec.name]:
            self.rows[spec.name] = row
            self.write()

    def write(self) -> None:
        write_json(self.file, {"recipe": self.recipe, "stages": [asdict(row) for row in self.rows.values()]})


def select(line: Sequence[StageSpec], until: str | None) -> list[StageSpec]:
    """The nodes to run: all, or `until` and what it needs."""
    if until is None:
        return list(line)
    if until not in {spec.name for spec in line}:
        raise UserError(f"There is no stage {until!r}", f"use one of: {', '.join(spec.name for spec in line)}")
    return upstream(line, until)


def run_line(
    recipe: Recipe,
    run_dir: Path,
    until: str | None = None,
    line: Sequence[StageSpec] = LINE,
    say: Callable[[str], None] = lambda text: None,
    given: Mapping[str, Artifact] | None = None,
) -> dict[str, Artifact]:
    """Run what has to run; returns the artifact of every node that has one, the selected ones included.

    `given` are inputs that no node makes, such as a user's file; nodes name them like other nodes.

    Raises `UserError` for anything the user can mend; other exceptions of a stage propagate after its failure is
    recorded.
    """
    chosen = {spec.name for spec in select(line, until)}
    with Lease(run_dir) as lease:
        _refuse_full_disk(run_dir)
        store = Store(run_dir)
        store.sweep()
        board = Board(run_dir, recipe, line)
        done: dict[str, Artifact] = dict(given or {})
        for spec in line:
            if any(name not in done for name in spec.inputs.values()):
                continue
            inputs = {role: done[name] for role, name in spec.inputs.items()}
            making = making_of(spec, recipe, inputs)
            artifact = store.find(spec.name, making.identity)
            if artifact is None and spec.name not in chosen:
                continue
            if artifact is None:
                artifact = _run_stage(spec, recipe, store, board, lease, making, inputs, say)
            done[spec.name] = artifact
            board.set(spec, "done", artifact=artifact)
        board.write()
        _set_refs(store, done)
        store.rebuild_index()
    return done


def _set_refs(store: Store, done: Mapping[str, Artifact]) -> None:
    """Point `champion` and `base` at what the line released, or at what its loops promoted after that."""
    for name, first, loop, candidate in REFS:
        if first in done:
            promoted = loop in done and read_json(done[loop] / "decision.json")["decision"] == "promote"
            store.set_ref(name, done[candidate if promoted else first])


def _run_stage(
    spec: StageSpec,
    recipe: Recipe,
    store: Store,
    board: Board,
    lease: Lease,
    making: Making,
    inputs: Mapping[str, Artifact],
    say: Callable[[str], None],
) -> Artifact:
    from loopline.compute.local import prepare

    changes = store.changes(making, spec.recipe_section)
    why = explain(changes)
    attempt = store.begin(making)
    board.set(spec, "running", why)
    say(f"[{spec.room}] {spec.name}: {why}")
    threads = prepare(recipe.compute.device, recipe.compute.threads)

    def beat() -> None:
        lease.beat()
        attempt.beat()

    context = Context(spec.name, attempt.out, attempt.state, making.seed, threads, recipe.compute.device, beat)
    try:
        with _full_disk_explained(spec.name):
            spec.load()(recipe.section(spec.recipe_section), inputs, context)
            runtime = {"threads": threads, "device": recipe.compute.device}
            artifact = store.commit(attempt, spec.kind, context.metrics.values, runtime)
    except KeyboardInterrupt:
        board.set(spec, "interrupted", why)
        raise
    except BaseException as error:
        board.set(spec, "failed", why, error=error)
        raise
    say(f"    {artifact.meta['seconds']:.1f} s, {artifact.digest[:12]}")
    return artifact


@contextmanager
def _full_disk_explained(stage: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_full_disk(error):
            raise
        raise UserError(
            f"The disk is full, so {stage} could not go on; every finished stage is safe",
            "free some space and run the same command again: it continues where it stopped",
        ) from error


def _is_full_disk(error: Exception) -> bool:
    """Libraries that write for themselves raise errors of their own, which only their text tells apart."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(phrase in str(error).lower() for phrase in ("no space left on device", "disk is full"))


def _refuse_full_disk(run_dir: Path) -> None:
    free = shutil.disk_usage(run_dir).free
    if free < FREE_BYTES:
        raise UserError(
            f"Only {free / 2**20:.0f} MiB are free where {run_dir} lies; a run needs at least "
            f"{FREE_BYTES / 2**20:.0f} MiB",
            "free some space, or put the run elsewhere with --dir",
        )


def plan_line(
    recipe: Recipe, run_dir: Path, until: str | None = None, line: Sequence[StageSpec] = LINE
) -> list[dict[str, str]]:
    """What a run would do, without doing it: {"name", "action": "reuse" | "run" | "depends", "why"}.

    A node below one that would run "depends": it runs unless its inputs come out with the bytes they had.
    """
    store = Store(run_dir)
    done: dict[str, Artifact] = {}
    rows = []
    for spec in select(line, until):
        waiting = sorted({name for name in spec.inputs.values() if name not in done})
        if waiting:
            rows.append({"name": spec.name, "action": "depends", "why": f"after {', '.join(waiting)}"})
            continue
        making = making_of(spec, recipe, {role: done[name] for role, name in spec.inputs.items()})
        artifact = store.find(spec.name, making.identity)
        if artifact is not None:
            done[spec.name] = artifact
            rows.append({"name": spec.name, "action": "reuse", "why": ""})
        else:
            why = explain(store.changes(making, spec.recipe_section))
            rows.append({"name": spec.name, "action": "run", "why": why})
    return rows


def status(run_dir: Path) -> list[StageStatus]:
    """The state of every node, from `run.json`; one that was running when its process died is "interrupted".

    Raises `UserError` when there is no run.
    """
    file = run_dir / "run.json"
    if not file.exists():
        raise UserError(f"There is no run in {run_dir}", "start one with `loopline run laptop`, or name it with --dir")
    rows = [StageStatus(**row) for row in read_json(file)["stages"]]
    if is_running(run_dir):
        return rows
    return [replace(row, state="interrupted") if row.state == "running" else row for row in rows]


def why(run_dir: Path, stage: str) -> StageStatus:
    """Why a node last ran. Raises `UserError` for an unknown one."""
    rows = {row.name: row for row in status(run_dir)}
    if stage not in rows:
        raise UserError(f"There is no stage {stage!r} in {run_dir}", f"use one of: {', '.join(rows)}")
    return rows[stage]


def stop_on_signals() -> None:
    """Turn SIGTERM into the same orderly stop as Ctrl-C."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
