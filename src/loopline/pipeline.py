"""Runs a line: every node whose ingredients changed, in order, resuming what a crash cut short.

    run_line(recipe, Path("runs/laptop"))

A node's identity is what it is made from, inputs by content; one that is in the store already, under whatever name, is
not run again, and a node that reproduces the bytes it had stops the rebuild there. `run.json` tells the state of the
line at any time. Not covered: nodes in parallel, other machines (see `loopline.compute`).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loopline.base.config import identity_of
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.base.stage import AREAS
from loopline.inputs import read_input
from loopline.line import Node, upstream
from loopline.model.given import Digests
from loopline.needs import refuse_what_cannot_fit
from loopline.recipe import Recipe
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.store.lease import Lease, is_running
from loopline.store.store import Store
from loopline.store.trackers import require, tracked
from loopline.store.why import BuildKey, explain

FREE_BYTES = 200 * 2**20
"""Free disk space below which a run is refused before it starts."""


@dataclass(frozen=True)
class StageStatus:
    """One node's state."""

    name: str
    kind: str
    """Its stage kind."""
    area: int
    """Which of the nine parts of the line it belongs to."""
    stage: str
    """Title of that part."""
    state: str
    """pending, running, interrupted, failed, done."""
    seconds: float | None = None
    identity: str | None = None
    digest: str | None = None
    path: str | None = None
    """Artifact directory relative to the run directory."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role to node."""
    headline: str = ""
    """What it gave, in one line."""
    why: str = ""
    """Why it ran when it last ran."""
    error: str = ""
    """What it failed with, if it did."""


def seed_of(recipe_seed: int, node: Node) -> int:
    """A node's seed: from its kind and repetition, so that neither its name nor its neighbours change it."""
    name = f"{node.kind.name}/{node.turn}" if node.turn else node.kind.name
    return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{name}".encode()).digest()[:4], "big") >> 1


def build_key(node: Node, recipe: Recipe, inputs: Mapping[str, Artifact]) -> BuildKey:
    """Everything that the node's identity covers."""
    return BuildKey(
        node.name,
        node.kind.name,
        node.kind.version,
        seed_of(recipe.seed, node),
        identity_of(node.settings),
        {role: {"stage": item.stage, "digest": item.digest} for role, item in sorted(inputs.items())},
    )


def headline(metrics: Mapping[str, Any]) -> str:
    """What a stage gave, in one line: its own words, or its first numbers."""
    if "headline" in metrics:
        return str(metrics["headline"])
    numbers = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in numbers[:4]
    )


class Board:
    """`run.json`: what every node of the line is up to."""

    def __init__(self, run_dir: Path, recipe: Recipe) -> None:
        self.file = run_dir / "run.json"
        self.recipe = {"name": recipe.name, "seed": recipe.seed}
        before = {row["name"]: row for row in read_json(self.file)["stages"]} if self.file.exists() else {}
        self.rows = {node.name: _row(node, "pending") for node in recipe.nodes}
        self.reasons = {name: row.get("why", "") for name, row in before.items()}

    def set(
        self,
        node: Node,
        state: str,
        why: str | None = None,
        artifact: Artifact | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Record a node's state. Without `why` the reason it last ran for stays."""
        if why is not None:
            self.reasons[node.name] = why
        details: dict[str, Any] = {}
        if artifact is not None:
            here = artifact.path.is_relative_to(self.file.parent)
            details = {
                "seconds": artifact.meta.get("seconds"),
                "identity": artifact.identity,
                "digest": artifact.digest,
                "path": artifact.path.relative_to(self.file.parent).as_posix() if here else str(artifact.path),
                "headline": headline(artifact.meta.get("metrics", {})),
            }
        if error is not None:
            details["error"] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        row = replace(_row(node, state), why=self.reasons.get(node.name, ""), **details)
        if row != self.rows[node.name]:
            self.rows[node.name] = row
            self.write()

    def write(self) -> None:
        write_json(self.file, {"recipe": self.recipe, "stages": [asdict(row) for row in self.rows.values()]})


def _row(node: Node, state: str) -> StageStatus:
    area = node.kind.area
    return StageStatus(node.name, node.kind.name, area, AREAS[area], state, inputs=dict(node.inputs))


def run_line(
    recipe: Recipe, run_dir: Path, until: str | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Artifact]:
    """Run what has to run; returns the artifact of every node that has one, the selected ones included.

    Raises `UserError` for anything that the user can fix; other exceptions of a stage propagate after its failure is
    recorded.
    """
    chosen = {node.name for node in (recipe.nodes if until is None else upstream(recipe.nodes, [until]))}
    refuse_what_cannot_fit(recipe)
    require(recipe.track)
    with Lease(run_dir) as lease:
        _refuse_full_disk(run_dir)
        store = Store(run_dir)
        store.sweep()
        board = Board(run_dir, recipe)
        digests = Digests(run_dir / "inputs.json")
        done: dict[str, Artifact] = {}
        for number, node in enumerate(recipe.nodes, start=1):
            if any(name not in done for name in node.inputs.values()):
                continue
            inputs = inputs_of(node, done, digests)
            key = build_key(node, recipe, inputs)
            artifact = store.find(key)
            if artifact is None and node.name not in chosen:
                continue
            if artifact is None:
                place = f"[{number}/{len(recipe.nodes)}] {node.name}"
                artifact = _run_node(node, recipe, store, board, lease, key, inputs, place, say)
            done[node.name] = artifact
            board.set(node, "done", artifact=artifact)
        board.write()
        if digests.known:
            digests.save()
        _set_refs(recipe, store, done)
        store.rebuild_index()
    return done


def inputs_of(node: Node, done: Mapping[str, Artifact], digests: Digests) -> dict[str, Artifact]:
    """The node's inputs by role: earlier artifacts, and the user's files that its settings name."""
    files = {role: read_input(path, role, digests) for role, path in node.files.items()}
    # An artifact is called as its node is now, whatever that was called when it ran.
    return {**{role: replace(done[name], stage=name) for role, name in node.inputs.items()}, **files}


def _set_refs(recipe: Recipe, store: Store, done: Mapping[str, Artifact]) -> None:
    """Point `champion` and `base` at what the line released and pretrained, or at what a gate promoted after that."""
    first = {"release": "champion", "pretrain": "base"}
    gates = {"gate": "champion", "gate_benchmarks": "base"}
    for node in recipe.nodes:
        artifact = done.get(node.name)
        if artifact is None:
            continue
        if node.kind.name in first:
            store.set_ref(first[node.kind.name], artifact)
        elif node.kind.name in gates and read_json(artifact / "decision.json")["decision"] == "promote":
            evaluation = recipe.node(node.inputs["after"])
            store.set_ref(gates[node.kind.name], done[evaluation.inputs["checkpoint"]])


def _run_node(
    node: Node,
    recipe: Recipe,
    store: Store,
    board: Board,
    lease: Lease,
    key: BuildKey,
    inputs: Mapping[str, Artifact],
    place: str,
    say: Callable[[str], None],
) -> Artifact:
    from loopline.compute.local import prepare

    why = explain(store.changes(key))
    attempt = store.begin(key)
    board.set(node, "running", why)
    say(f"{place}{'' if why == 'never ran before' else ': ' + why}")
    compute = recipe.compute
    threads = prepare(compute.device, compute.threads)

    def beat() -> None:
        lease.beat()
        attempt.beat()

    context = Context(node.name, attempt.out, attempt.state, key.seed, threads, compute.device, beat)
    try:
        with _full_disk_explained(node.name), tracked(recipe.track, store.root, recipe.name, node.name) as sinks:
            context.metrics.sinks += sinks
            node.kind.load()(node.settings, inputs, context)
            runtime = {"threads": threads, "device": compute.device}
            artifact = store.commit(attempt, node.kind.gives, context.metrics.values, runtime)
    except KeyboardInterrupt:
        board.set(node, "interrupted", why)
        raise
    except BaseException as error:
        board.set(node, "failed", why, error=error)
        raise
    gave = headline(artifact.meta["metrics"])
    say(f"{place}: {gave + ' ' if gave else ''}({artifact.meta['seconds']:.1f} s)")
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
    """Libraries that write for themselves raise errors of their own, which only their text distinguishes."""
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


def plan_line(recipe: Recipe, run_dir: Path, until: str | None = None) -> list[dict[str, str]]:
    """What a run would do, without doing it: {"name", "kind", "inputs", "action": "reuse" | "run" | "depends", "why"}.

    A node below one that would run "depends": it runs unless its inputs come out with the bytes they had.
    """
    store = Store(run_dir)
    digests = Digests(run_dir / "inputs.json")
    done: dict[str, Artifact] = {}
    rows = []
    for node in recipe.nodes if until is None else upstream(recipe.nodes, [until]):
        fed = dict.fromkeys([*node.inputs.values(), *(path.name for path in node.files.values())])
        row = {"name": node.name, "kind": node.kind.name, "inputs": ", ".join(fed)}
        waiting = sorted({name for name in node.inputs.values() if name not in done})
        if waiting:
            rows.append({**row, "action": "depends", "why": f"after {', '.join(waiting)}"})
            continue
        inputs = inputs_of(node, done, digests)
        key = build_key(node, recipe, inputs)
        artifact = store.find(key)
        if artifact is not None:
            done[node.name] = artifact
            rows.append({**row, "action": "reuse", "why": ""})
        else:
            rows.append({**row, "action": "run", "why": explain(store.changes(key))})
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
        raise UserError(f"There is no node {stage!r} in {run_dir}", f"use one of: {', '.join(rows)}")
    return rows[stage]


def stop_on_signals() -> None:
    """Turn SIGTERM into the same orderly stop as Ctrl-C."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
