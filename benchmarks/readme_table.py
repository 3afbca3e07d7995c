"""Write the results of a finished run into the README, between `<!-- results -->` and `<!-- /results -->`.

    .venv/bin/python benchmarks/readme_table.py runs/laptop
    .venv/bin/python benchmarks/readme_table.py runs/laptop --print     # show it, change nothing

Every number comes from `loopline.report.data.build_report`, so from the run's artifacts; a run with a stage that is
not done is refused. Not covered: averaging over seeds (one run is one seed, and the block says so).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import write_text
from loopline.report.data import build_report

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"
COLUMNS = (
    ("reasoning", "sampled"),
    ("reasoning", "greedy"),
    ("code", "sampled"),
    ("format", "sampled"),
    ("safety", "sampled"),
    ("refusal", "sampled"),
    ("lookup", "sampled"),
)
"""Task and mode of each column."""
BASES = ("pretrain_next", "pretrain_control")
"""Continued bases are judged in bits per byte by the benchmark loop; their answers say nothing."""
STEPS = (
    ("sft", "pretrain", "reasoning", "cold-start fine-tuning"),
    ("grpo", "sft", "reasoning", "reasoning RL"),
    ("rft", "grpo", "reasoning", "rejection sampling"),
    ("align", "rft", "reasoning", "alignment"),
    ("align", "rft", "refusal", "alignment"),
    ("harness:best", "harness:first", None, "harness search"),
    ("student", "student_plain", "reasoning", "the teacher's traces"),
    ("quantize", "align", "reasoning", "int8 weights"),
    ("retrain", None, "reasoning", "retraining on traffic"),
)
"""a, b (None: whatever it was compared with), task (None: the only one), what the step is."""


def block(report: Mapping[str, Any]) -> str:
    """The text between the marks. Raises `UserError` unless every stage of the run is done."""
    run = report["run"]
    if run["state"] != "done":
        raise UserError(
            f"The run {run['name']} is {run['state']}: {run['done']} of {run['total']} stages are done",
            f"run `loopline run {run['name']}` to its end first",
        )
    parts = [_facts(report), _scores(report), _changes(report), _decisions(report)]
    return "\n\n".join(parts)


def _facts(report: Mapping[str, Any]) -> str:
    run, plan = report["run"], report["plan"]
    versions = report["environment"][0]["versions"]
    machine = f"{versions['machine']}, Python {versions['python']}, torch {versions['torch']}"
    return (
        f"Recipe `{run['name']}`, seed {run['seed']}, one run: {run['total']} stages, "
        f"{run['seconds'] / 60:.0f} minutes of work on {versions['threads']} CPU threads ({machine}). "
        f"The model has {plan['parameters']:,} parameters and was pretrained on {plan['tokens']:,} tokens."
    )


def _scores(report: Mapping[str, Any]) -> str:
    rows = {(row["checkpoint"], row["task"], row["metric"]): row for row in report["evaluations"]}
    names = list(dict.fromkeys(row["checkpoint"] for row in report["evaluations"]))
    champion = report["release"]["champion"]
    lines: list[list[str]] = []
    counts: dict[str, int] = {}
    for name in names:
        found = [rows.get((name, task, f"{mode} pass@1")) for task, mode in COLUMNS]
        if name in BASES or not any(found):
            continue
        counts |= {task: row["n"] for (task, _), row in zip(COLUMNS, found, strict=True) if row}
        label = f"**{name}** (released)" if name == champion else name
        lines.append([label, *(_cell(row) for row in found)])
    head = ["checkpoint", *(task if mode == "sampled" else f"{task}, {mode}" for task, mode in COLUMNS)]
    sizes = ", ".join(f"{task} {n}" for task, n in counts.items())
    caption = (
        f"Held-out tasks right, in percent, with 95% intervals; sampled at temperature 1 unless named. n: {sizes}."
    )
    return f"{caption}\n\n{_table(head, lines)}"


def _changes(report: Mapping[str, Any]) -> str:
    lines = []
    for a, b, task, label in STEPS:
        for row in report["comparisons"]:
            sides = row["a"] == a and b in (None, row["b"])
            # The harness is judged as it was searched; checkpoints as their users meet them, sampled.
            if sides and (task is None or (row["task"] == task and row["metric"].startswith("sampled"))):
                verdict = {"a": "better", "b": "worse", None: "not told apart"}[row["better_holm"]]
                change = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
                lines.append([label, f"{row['a']} against {row['b']}", row["task"], str(row["n"]), change, verdict])
    caption = (
        "What each step changed: the same tasks, paired, in points; the verdict is a test after Holm's correction."
    )
    return f"{caption}\n\n{_table(['step', 'pair', 'task', 'n', 'difference', 'verdict'], lines)}"


def _decisions(report: Mapping[str, Any]) -> str:
    lines = [f"- Release: {' '.join(report['release']['reasons'][:1])}"]
    for loop in report["loops"]:
        lines.append(f"- The {loop['name']} loop: {loop['decision']}. {' '.join(loop['reasons'][:1])}")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def replace_block(text: str, new: str) -> str:
    """`text` with what stands between the marks replaced. Raises `UserError` when the marks are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"README.md has no {START} ... {END}", "put both marks where the results belong")
    return f"{before}{START}\n{new}\n{END}{after}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="A finished run directory.")
    parser.add_argument("--print", action="store_true", dest="show", help="Print the block and change nothing.")
    options = parser.parse_args()
    try:
        new = block(build_report(options.run_dir))
        if options.show:
            print(new)
        else:
            write_text(README, replace_block(README.read_text(encoding="utf-8"), new))
    except UserError as error:
        print(f"readme_table: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
