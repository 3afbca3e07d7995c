"""The two loops that keep the line improving, as single turns on a finished run.

    loop_traffic(run_dir, recipe, database="traffic.sqlite")   # recorded traffic -> data -> candidate -> gate
    loop_benchmarks(run_dir, recipe)                           # weak held-out areas -> mixture -> next pretraining

Both run the nodes of the line they need and return the decision with its comparisons. What the gate promotes becomes
the champion (or the base) at once. Not covered: deciding when to turn a loop; a scheduler calls the command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.line import Node
from loopline.pipeline import run_line
from loopline.recipe import Recipe


def loop_traffic(
    run_dir: Path, recipe: Recipe, database: str | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Turn the traffic loop once and return its decision.

    `database` is the recorded traffic of `loopline serve`: a file or an SQLAlchemy URL; without one the scripted
    client's traffic is used. Raises `UserError` when it does not exist or holds no answer.
    """
    if database is not None:
        recipe = with_recorded_traffic(recipe, database)
    return _turn(run_dir, recipe, "gate", say)


def loop_benchmarks(run_dir: Path, recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Turn the benchmark loop once and return its decision."""
    return _turn(run_dir, recipe, "gate_benchmarks", say)


def with_recorded_traffic(recipe: Recipe, database: str) -> Recipe:
    """The recipe with its traffic stage reading `database`; the content's digest enters the stage's identity."""
    from loopline.serve.export import traffic_digest
    from loopline.serve.records import Records

    records = Records.open(database, create=False)
    try:
        if not records.requests():
            raise UserError(
                f"{database} holds no recorded answer", "serve the model with `loopline serve` and talk to it first"
            )
        digest = traffic_digest(records)
    finally:
        records.close()
    node = last_of(recipe, "traffic")
    values = node.settings.model_dump() | {"live": {"database": database}, "live_digest": digest}
    settings = type(node.settings).model_validate(values)
    return replace(recipe, nodes=tuple(replace(n, settings=settings) if n is node else n for n in recipe.nodes))


def last_of(recipe: Recipe, kind: str) -> Node:
    """The recipe's last node of a kind, whatever it is called. Raises `UserError` when there is none."""
    found = [node for node in recipe.nodes if node.kind.name == kind]
    if not found:
        raise UserError(
            f"The recipe {recipe.name} has no node of the kind {kind}", f"add `- {kind}` and what feeds it to its line"
        )
    return found[-1]


def _turn(run_dir: Path, recipe: Recipe, kind: str, say: Callable[[str], None]) -> dict[str, Any]:
    node = last_of(recipe, kind).name
    done = run_line(recipe, run_dir, until=node, say=say)
    decision: dict[str, Any] = read_json(done[node] / "decision.json")
    return decision
