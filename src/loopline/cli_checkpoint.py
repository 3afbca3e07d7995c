"""Commands on one checkpoint: train it, evaluate it, write it in another form. Each is a short recipe.

    loopline sft --model DIR --data train.jsonl --out runs/mine
    loopline eval DIR --tasks gsm8k/test.jsonl

Heavy modules are imported by the command that needs them. Not covered: running recipes (see `loopline.cli`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from loopline.terminal import JsonOption, print_table, say

app = typer.Typer()

ModelOption = Annotated[
    str, typer.Option("--model", help="Checkpoint directory, .gguf file, package:NAME, or the --out of a command.")
]
DataOption = Annotated[str, typer.Option("--data", help="Rows: .jsonl, .json, .csv or .parquet.")]
OutOption = Annotated[Path, typer.Option("--out", help="Directory of this run; the result is OUT/model.")]
ColumnsOption = Annotated[str, typer.Option(help="Names of columns, e.g. prompt=question,completion=answer.")]
SettingOption = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the stage, e.g. steps=50, or tasks.limit=100.")
]
GraderOption = Annotated[str | None, typer.Option(help="A grader: .json, .py, or a ready one's name.")]
HeldoutOption = Annotated[str | None, typer.Option(help="Prompts that nothing may be trained on.")]
ForceOption = Annotated[bool, typer.Option("--force-grader", help="Go on with a grader that fails its audit.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default every core.")]
RunSeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def _short(command: str, options: dict[str, Any]) -> None:
    """Run the short recipe of a command; `options` are its own parameters."""
    from loopline.pipeline import stop_on_signals
    from loopline.short_recipes import Request, run_command

    as_json, overrides = options.pop("as_json"), options.pop("overrides") or []
    stop_on_signals()
    result = run_command(Request(command, overrides=overrides, **options), say=say)
    print(json.dumps(result, indent=2, sort_keys=True) if as_json else f"{result['model']}: {result['headline']}")


@app.command()
def sft(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a checkpoint on conversations, or on prompts and completions."""
    _short("sft", locals())


@app.command()
def reward(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model on pairs (--set loss=pointwise: labelled answers; loss=process: labelled steps)."""
    _short("reward", locals())


@app.command()
def dpo(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on preferences: --set loss=dpo, ipo, kto, orpo, simpo, cpo or another of their kind."""
    _short("dpo", locals())


@app.command()
def grpo(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    grader: GraderOption = None,
    force_grader: ForceOption = False,
    heldout: HeldoutOption = None,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reinforce what a grader rewards on prompts."""
    _short("grpo", locals())


@app.command()
def reject(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    grader: GraderOption = None,
    force_grader: ForceOption = False,
    heldout: HeldoutOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times to sample, select and train.")] = 1,
    reward_model: Annotated[str | None, typer.Option(help="Ranks answers for --set select=best.")] = None,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample answers, keep what a grader accepts, and train on it (rejection sampling)."""
    _short("reject", locals())


@app.command()
def align(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    grader: GraderOption = None,
    force_grader: ForceOption = False,
    heldout: HeldoutOption = None,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample answers to requests, prefer what the graders accept, and train on the preferences."""
    _short("align", locals())


@app.command()
def distill(
    model: ModelOption,
    student: Annotated[str, typer.Option(help="The checkpoint that learns from --model.")],
    data: DataOption,
    out: OutOption,
    grader: GraderOption = None,
    force_grader: ForceOption = False,
    heldout: HeldoutOption = None,
    columns: ColumnsOption = "",
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a smaller checkpoint on a teacher's answers that a grader accepts."""
    _short("distill", locals())


@app.command()
def quantize(
    model: ModelOption,
    out: OutOption,
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint with int8 weights."""
    _short("quantize", locals())


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint directory, .gguf file, package:NAME, or an API's URL.")],
    tasks: Annotated[
        list[str], typer.Option("--tasks", help="A file, NAME=FILE, reasoning_gym:NAME, or a YAML file with `tasks:`.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of this run.")] = Path("runs/eval"),
    text: Annotated[str | None, typer.Option(help="A plain text file to measure bits per byte on.")] = None,
    grader: GraderOption = None,
    force_grader: ForceOption = False,
    name: Annotated[str | None, typer.Option(help="What an API calls the model.")] = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable with the API's key.")] = None,
    overrides: SettingOption = None,
    seed: RunSeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint or an API on task sets: per-item outcomes, pass@k (--set samples=8), intervals."""
    from loopline.eval_recipe import EvalRequest, eval_recipe
    from loopline.pipeline import run_line, stop_on_signals
    from loopline.results import read_scores, score_table

    stop_on_signals()
    request = EvalRequest(
        model=model,
        tasks=tasks,
        out=out,
        text=text,
        grader=grader,
        endpoint_model=name,
        key_env=key_env,
        force_grader=force_grader,
        overrides=overrides or [],
        seed=seed,
        device=device,
        threads=threads,
    )
    run_line(eval_recipe(request), out, say=say)
    rows = read_scores(out)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print_table(*score_table(rows))
    say(f"Items and intervals: {out}. Compare two with: loopline compare {out} OTHER")
