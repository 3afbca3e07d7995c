"""What a run's evaluations found, as one table, and several seeds of a recipe joined.

    header, cells = score_table(read_scores(Path("runs/laptop")))
    joined = join_seeds([Path("runs/laptop/seed-0"), Path("runs/laptop/seed-1")])

Numbers are read from the evaluations' summary.json, so any recipe has them. Over seeds a value is the mean of the runs
with a 95% t interval of the mean (Student 1908): it covers the training's chance, which intervals over tasks do not.
Not covered: paired comparisons of two checkpoints (see `evaluation.compare`), the report page (see `report`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.pipeline import status

Row = dict[str, Any]
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t for 1, 2, ... degrees of freedom."""
COLUMNS = 8
"""Results in a table at most."""


def read_scores(run_dir: Path) -> list[Row]:
    """One row per finished evaluation, task and metric: {"node", "task", "metric", "part", "n", "value", "low",
    "high"}, in the order of the line; `node` is what was evaluated.
    """
    rows: list[Row] = []
    for node in status(run_dir):
        if node.kind == "evaluate" and node.state == "done" and node.path:
            name = node.inputs.get("checkpoint", node.name)
            for found in read_json(run_dir / node.path / "summary.json")["evaluations"]:
                rows.append({**found, "node": name})
    return rows


def main_part(rows: Sequence[Row]) -> list[Row]:
    """The rows of the part that a final table shows: held out if it was asked, else for development."""
    tasks = [row for row in rows if row.get("part")]
    held = [row for row in tasks if row["part"] == "heldout"]
    return held or tasks


def score_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a line per evaluated node, a column per tag (without tags: per task set) of the first metric.

    Empty where nothing was evaluated.
    """
    shown = main_part(rows)
    if not shown:
        return [], []
    metric = shown[0]["metric"]
    shown = [row for row in shown if row["metric"] == metric]
    names = list(dict.fromkeys(row["task"] for row in shown))
    names = ([name for name in names if name.startswith("tag:")] or names)[:COLUMNS]
    header = [f"{metric}, {shown[0]['part']}", *(name.removeprefix("tag:") for name in names)]
    cells = []
    for node in dict.fromkeys(row["node"] for row in shown):
        found = {row["task"]: row for row in shown if row["node"] == node}
        cells.append([node, *(percent(found[name]) if name in found else "" for name in names)])
    return header, cells


def percent(row: Mapping[str, Any]) -> str:
    """A score with its interval, in percent."""
    if row["value"] is None:
        return "-"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def join_seeds(run_dirs: Sequence[Path]) -> list[Row]:
    """The runs' scores as one row per node, task, metric and part: the values, their mean and its 95% interval.

    Raises `UserError` for fewer than two runs, or runs with different results.
    """
    if len(run_dirs) < 2:
        raise UserError("Joining seeds needs at least two runs", "use --seeds 2 or more")
    tables = [{_key(row): row for row in read_scores(path)} for path in run_dirs]
    for path, table in zip(run_dirs, tables, strict=True):
        if table.keys() != tables[0].keys():
            odd = sorted(map(str, table.keys() ^ tables[0].keys()))[0]
            raise UserError(
                f"{path} and {run_dirs[0]} have different results ({odd})", "run the same recipe to its end"
            )
    joined = []
    for key, first in tables[0].items():
        values = [table[key]["value"] for table in tables]
        kept = {name: first.get(name) for name in ("node", "task", "metric", "part", "n")}
        joined.append({**kept, "seeds": len(values), "values": values, **_mean(values)})
    return joined


def write_joined(out: Path, run_dirs: Sequence[Path]) -> list[Row]:
    """Join the runs and write `out`/seeds.json."""
    rows = join_seeds(run_dirs)
    write_json(out / "seeds.json", {"runs": [path.name for path in run_dirs], "scores": rows})
    return rows


def _key(row: Row) -> tuple[str, str, str, str]:
    return row["node"], row["task"], row["metric"], str(row.get("part", ""))


def _mean(values: Sequence[float | None]) -> Row:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"value": None, "low": None, "high": None}
    middle, degrees = fmean(known), len(known) - 1
    quantile = T_95[degrees - 1] if degrees <= len(T_95) else 1.96 + 2.5 / degrees
    half = quantile * stdev(known) / math.sqrt(len(known))
    return {"value": round(middle, 6), "low": round(middle - half, 6), "high": round(middle + half, 6)}
