"""Write the results of a finished run into the README, between `<!-- results -->` and `<!-- /results -->`.

    .venv/bin/python benchmarks/readme_table.py runs/laptop
    .venv/bin/python benchmarks/readme_table.py runs/laptop --print     # show it, change nothing

Every number comes from the run's artifacts, on the held-out parts; differences are paired item by item with the
statistics of `loopline compare`, and verdicts hold after Holm's correction over the whole table. A run with a node that
is not done is refused. Not covered: averaging over seeds (`loopline run --seeds`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_text
from loopline.evaluation.statistics import Comparison, holm, paired_comparison
from loopline.pipeline import StageStatus, status
from loopline.results import percent, read_scores

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"
COLUMNS = (
    ("tag:reasoning", "sampled"),
    ("tag:reasoning", "greedy"),
    ("code", "sampled"),
    ("format", "sampled"),
    ("tag:must_refuse", "sampled"),
    ("tag:must_answer", "sampled"),
    ("lookup", "sampled"),
)
"""Task set or tag, and mode, of each column."""
STEPS = (
    ("supervised fine-tuning", "sft", "pretrain", "tag:reasoning"),
    ("reinforcement learning", "grpo", "sft", "tag:reasoning"),
    ("rejection sampling", "reject", "grpo", "tag:reasoning"),
    ("alignment", "align", "reject", "tag:reasoning"),
    ("alignment", "align", "reject", "tag:must_refuse"),
    ("alignment", "align", "reject", "tag:must_answer"),
    ("all four, beside SFT of equal time", "align", "sft_long", "tag:reasoning"),
    ("all four, beside SFT of equal time", "align", "sft_long", "tag:must_refuse"),
    ("all four, beside SFT of equal time", "align", "sft_long", "tag:must_answer"),
    ("all four, beside SFT of equal time", "align", "sft_long", "code"),
    ("the teacher's answers, beside written ones", "student", "student_plain", "tag:reasoning"),
    ("int8 weights", "quantize", "align", "tag:reasoning"),
    ("retraining on traffic", "retrain", "release", "tag:reasoning"),
)
"""What the step is, a, b (its control), task set or tag."""
Items = dict[tuple[str, str], Mapping[str, Any]]


def block(run_dir: Path) -> str:
    """The text between the marks. Raises `UserError` unless every node of the run is done."""
    rows = status(run_dir)
    waiting = [row.name for row in rows if row.state != "done"]
    if waiting:
        raise UserError(f"The run in {run_dir} is not done: {', '.join(waiting)}", "run it to its end first")
    nodes = {row.name: row for row in rows}
    release = read_json(run_dir / str(nodes["release"].path) / "release.json")
    parts = [_facts(run_dir, nodes), _scores(run_dir, release["champion"])]
    parts += [_changes(run_dir, nodes, release["champion"]), _decisions(run_dir, nodes, release)]
    return "\n\n".join(parts)


def _artifact(run_dir: Path, node: StageStatus, name: str) -> Any:
    return read_json(run_dir / str(node.path) / name)


def _facts(run_dir: Path, nodes: Mapping[str, StageStatus]) -> str:
    recipe = read_json(run_dir / "run.json")["recipe"]
    plan = _artifact(run_dir, nodes["plan"], "plan.json")
    versions = _artifact(run_dir, nodes["pretrain"], "artifact.json")["environment"]
    seconds = sum(row.seconds or 0 for row in nodes.values())
    four = sum(nodes[name].seconds or 0 for name in ("sft", "grpo", "reject", "align"))
    return (
        f"Recipe `{recipe['name']}`, seed {recipe['seed']}, one run: {len(nodes)} nodes, {seconds / 60:.0f} minutes of "
        f"work on {versions['threads']} CPU threads ({versions['machine']}, Python {versions['python']}, torch "
        f"{versions['torch']}). The model has {plan['parameters']:,} parameters and was pretrained on "
        f"{plan['tokens']:,} tokens. SFT, RL, rejection sampling and alignment took {four:.0f} s together; their "
        f"control `sft_long`, the same demonstrations for longer, {nodes['sft_long'].seconds or 0:.0f} s."
    )


def _scores(run_dir: Path, champion: str) -> str:
    found = [row for row in read_scores(run_dir) if row.get("part") == "heldout"]
    rows = {(row["node"], row["task"], row["metric"]): row for row in found}
    lines: list[list[str]] = []
    counts: dict[str, int] = {}
    for name in dict.fromkeys(row["node"] for row in found):
        cells = [rows.get((name, task, f"{mode} pass@1")) for task, mode in COLUMNS]
        if name in ("pretrain_next", "pretrain_control"):
            continue  # Judged in bits per byte by the benchmark loop; their answers say nothing.
        counts |= {task.removeprefix("tag:"): row["n"] for (task, _), row in zip(COLUMNS, cells, strict=True) if row}
        label = f"**{name}** (released)" if name == champion else name
        lines.append([label, *(percent(row) if row else "-" for row in cells)])
    names = [(task.removeprefix("tag:"), mode) for task, mode in COLUMNS]
    head = ["checkpoint", *(name if mode == "sampled" else f"{name}, {mode}" for name, mode in names)]
    sizes = ", ".join(f"{task} {n}" for task, n in counts.items())
    caption = (
        f"Held-out tasks right, in percent, with 95% intervals; sampled at temperature 1 unless named. n: {sizes}."
    )
    return f"{caption}\n\n{_table(head, lines)}"


def items_of(run_dir: Path, nodes: Mapping[str, StageStatus], name: str, champion: str) -> Items:
    """Held-out sampled outcomes of a node's evaluation, by task set and task."""
    wanted = champion if name == "release" else name
    node = next(row for row in nodes.values() if row.kind == "evaluate" and row.inputs.get("checkpoint") == wanted)
    rows = read_jsonl(run_dir / str(node.path) / "items.jsonl")
    return {
        (row["task_set"], row["task"]): row for row in rows if row["part"] == "heldout" and row["mode"] == "sampled"
    }


def _changes(run_dir: Path, nodes: Mapping[str, StageStatus], champion: str) -> str:
    found: list[tuple[str, str, str, str, Comparison]] = []
    for label, a, b, task in STEPS:
        ours, theirs = (items_of(run_dir, nodes, name, champion) for name in (a, b))
        keys = [key for key, row in ours.items() if key in theirs and _belongs(row, task)]
        scores = ([side[key]["score"] for key in keys] for side in (ours, theirs))
        found.append((label, a, b, task.removeprefix("tag:"), paired_comparison(*scores, seed=0)))
    adjusted = holm([one.p for *_, one in found])
    lines = []
    for (label, a, b, task, one), p in zip(found, adjusted, strict=True):
        verdict = "not significantly different" if p >= 0.05 else "better" if one.difference > 0 else "worse"
        change = f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        lines.append([label, f"{a} against {b}", task, str(one.n), change, verdict])
    lines += _harness(run_dir, nodes)
    caption = (
        "What each step changed, beside its control: the same held-out tasks, paired, one sample each, in points; "
        "verdicts after Holm's correction."
    )
    return f"{caption}\n\n{_table(['step', 'pair', 'task', 'n', 'difference', 'verdict'], lines)}"


def _belongs(row: Mapping[str, Any], task: str) -> bool:
    return task.removeprefix("tag:") in row["tags"] if task.startswith("tag:") else row["task_set"] == task


def _harness(run_dir: Path, nodes: Mapping[str, StageStatus]) -> list[list[str]]:
    summary = _artifact(run_dir, nodes["harness"], "summary.json")
    oracle = next((row.get("oracle") for row in summary["evaluations"] if row.get("oracle") is not None), None)
    lines = []
    for row in summary["comparisons"]:
        change = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        verdict = {None: "not significantly different", row["a"]: "better", row["b"]: "worse"}.get(
            row["better"], "better"
        )
        ceiling = "" if oracle is None else f" (recorded solutions: {oracle:.0%})"
        lines.append(
            ["harness search", f"{row['a']} against {row['b']}", row["task"] + ceiling, str(row["n"]), change, verdict]
        )
    return lines


def _decisions(run_dir: Path, nodes: Mapping[str, StageStatus], release: Mapping[str, Any]) -> str:
    lines = [f"- Release: {' '.join(release['reasons'][:1])}"]
    for row in nodes.values():
        if row.kind in ("gate", "gate_benchmarks"):
            decision = _artifact(run_dir, row, "decision.json")
            lines.append(f"- {row.name}: {decision['decision']}. {' '.join(decision['reasons'][:1])}")
    return "\n".join(lines)


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
        new = block(options.run_dir)
        if options.show:
            print(new)
        else:
            write_text(README, replace_block(README.read_text(encoding="utf-8"), new))
    except UserError as error:
        print(f"readme_table: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
