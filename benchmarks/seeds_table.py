"""The steps of the line over several seeds: does each layer earn its place every time?

    .venv/bin/python benchmarks/seeds_table.py runs/laptop runs/laptop-1 runs/laptop-2

Each argument is a finished run of one recipe with its own seed. Prints a Markdown table and writes
`benchmarks/results/laptop_seeds.json`: per step, task, mode and seed both scores, their paired difference with its 95%
interval and p-value on the same held-out tasks. Every number comes from `loopline.report.data.build_report`. Not
covered: a pooled test over seeds; each seed stands by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.report.data import build_report

RESULT = Path(__file__).resolve().parent / "results" / "laptop_seeds.json"
STEPS = (
    ("sft", "pretrain", "reasoning"),
    ("grpo", "sft", "reasoning"),
    ("grpo", "sft", "arithmetic"),
    ("grpo", "sft", "word_problem"),
    ("grpo", "sft", "ordering"),
    ("rft", "grpo", "reasoning"),
    ("align", "rft", "refusal"),
    ("align", "rft", "safety"),
    ("align", "rft", "reasoning"),
    ("student", "student_plain", "reasoning"),
    ("quantize", "align", "reasoning"),
    ("harness:best", "harness:first", "lookup (tools)"),
)
"""a, b, task."""


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """One row per step and mode of one run. Raises `UserError` when the run is not finished."""
    report = build_report(directory)
    if report["run"]["state"] != "done":
        raise UserError(f"The run {directory} is {report['run']['state']}", "run it to its end first")
    seed = read_json(directory / "run.json")["recipe"]["seed"]
    values = {(row["checkpoint"], row["task"], row["metric"]): row["value"] for row in report["evaluations"]}
    found = []
    for first, second, task in STEPS:
        for row in report["comparisons"]:
            if (row["a"], row["b"], row["task"]) != (first, second, task):
                continue
            kept = {key: row[key] for key in ("a", "b", "task", "metric", "n", "difference", "low", "high", "p")}
            sides = {side: values[row[side[0]], task, row["metric"]] for side in ("a_value", "b_value")}
            found.append({"seed": seed, **kept, **sides, "better": row["better"]})
    return found


def line(row: Mapping[str, Any]) -> str:
    """A row of the Markdown table."""
    verdict = {"a": "better", "b": "worse"}.get(row["better"], "not told apart")
    scores = f"{100 * row['b_value']:.1f} | {100 * row['a_value']:.1f}"
    interval = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    step = f"{row['a']} against {row['b']} | {row['task']} | {row['metric'].split()[0]}"
    return f"| {step} | {row['seed']} | {row['n']} | {scores} | {interval} | {row['p']:.1g} | {verdict} |"


def main(arguments: list[str]) -> None:
    """Print the table of the runs named and write the JSON."""
    if not arguments:
        raise SystemExit("usage: seeds_table.py RUN [RUN ...]")
    rows = [row for argument in arguments for row in rows_of(Path(argument))]
    order = {step: number for number, step in enumerate(STEPS)}
    rows.sort(key=lambda row: (order[row["a"], row["b"], row["task"]], row["metric"], row["seed"]))
    versions = read_json(next(Path(arguments[0]).glob("store/pretrain/*/artifact.json")))["environment"]
    write_json(RESULT, {"seeds": sorted({row["seed"] for row in rows}), "versions": versions, "rows": rows})
    print("| step | task | mode | seed | n | before | after | difference [95%] | p | |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(line(row) for row in rows))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(str(error)) from None
