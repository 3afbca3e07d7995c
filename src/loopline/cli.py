"""The command line: `loopline run laptop`, everything that looks at or uses what a run made, and the commands that
train a checkpoint of one's own on a file of one's own.

Heavy modules are imported by the command that needs them, so `loopline --help` answers at once. Anything the user
can fix is printed as one paragraph on standard error with exit status 2. Not covered: doing any of the work itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from loopline import cli_checkpoint
from loopline.base.errors import UserError
from loopline.terminal import JsonOption, print_table, readable_bytes, readable_seconds, say

app = typer.Typer(
    help="Loopline: raw text to a released, served and re-trained language model, in one line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
loop_app = typer.Typer(help="Turn one of the two loops again.", no_args_is_help=True)
app.add_typer(loop_app, name="loop")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of one that comes with the package.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting, e.g. grpo.steps=50.")]
DirOption = Annotated[Path | None, typer.Option("--dir", help="Run directory; default runs/<recipe name>.")]
RunDirOption = Annotated[Path, typer.Option("--dir", help="Run directory.")]
SeedOption = Annotated[int | None, typer.Option(help="Override the recipe's seed.")]
UntilOption = Annotated[str | None, typer.Option(help="Run this stage and what it needs, no more.")]
DEFAULT_RUN = Path("runs/laptop")
INTERRUPTED = 130
"""Exit status of a run stopped by a signal."""


def _load(recipe: str, overrides: list[str] | None, seed: int | None, directory: Path | None) -> tuple[Any, Path]:
    from loopline.recipe import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), overrides or [], seed)
    return loaded, directory or Path("runs") / loaded.name


@app.command()
def run(
    recipe: RecipeArgument = "laptop",
    until: UntilOption = None,
    overrides: SetOption = None,
    directory: DirOption = None,
    seed: SeedOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run so many seeds, one after the other, and join them.")] = 1,
) -> None:
    """Run a recipe's line: what is done stays, what changed runs, what was cut short goes on."""
    from loopline.pipeline import run_line, stop_on_signals
    from loopline.report.page import refresh_report
    from loopline.results import read_scores, score_table, write_joined

    loaded, run_dir = _load(recipe, overrides, seed, directory)
    stop_on_signals()
    if seeds == 1:
        run_line(loaded, run_dir, until, say=say)
        print_table(*score_table(read_scores(run_dir)))
        say(f"Done. Report: {refresh_report(run_dir)}")
        _next(run_dir)
        return
    folders = []
    for number in range(loaded.seed, loaded.seed + seeds):
        folders.append(run_dir / f"seed-{number}")
        say(f"Seed {number}")
        run_line(loaded.with_seed(number), folders[-1], until, say=say)
        refresh_report(folders[-1])
    print_table(*score_table(write_joined(run_dir, folders)))
    say(f"Done: {seeds} seeds, means with 95% intervals over seeds. Numbers: {run_dir / 'seeds.json'}")


def _next(run_dir: Path) -> None:
    """The commands that a finished run leads to."""
    if (run_dir / "refs" / "champion.json").exists():
        say(f"Next: loopline chat --dir {run_dir}    talk to what was released")
        say(f"      loopline serve --dir {run_dir}   serve it over the OpenAI API")


@app.command()
def plan(
    recipe: RecipeArgument = "laptop",
    until: UntilOption = None,
    overrides: SetOption = None,
    directory: DirOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the resolved line: inputs, what would run and why, estimated memory, disk and time; run nothing."""
    from loopline.needs import machine_speed, needs, refuse_what_cannot_fit
    from loopline.pipeline import plan_line

    loaded, run_dir = _load(recipe, overrides, seed, directory)
    refuse_what_cannot_fit(loaded)
    known = {need.node: need for need in needs(loaded, machine_speed())}
    rows: list[dict[str, Any]] = [
        {
            **row,
            "memory_bytes": known[row["name"]].peak_bytes,
            "disk_bytes": known[row["name"]].disk_bytes,
            "seconds": known[row["name"]].seconds,
        }
        for row in plan_line(loaded, run_dir, until)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ["node", "kind", "inputs", "action", "why", "memory", "disk", "time"],
        [
            [
                *(str(row[key]) for key in ("name", "kind", "inputs", "action", "why")),
                readable_bytes(row["memory_bytes"]),
                readable_bytes(row["disk_bytes"]),
                readable_seconds(row["seconds"]),
            ]
            for row in rows
        ],
    )


@app.command()
def status(directory: RunDirOption = DEFAULT_RUN, as_json: JsonOption = False) -> None:
    """Show the state of every stage of a run."""
    from dataclasses import asdict

    from loopline.pipeline import status as read_status

    rows = read_status(directory)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    cells = [
        [
            f"{row.area} {row.stage}",
            row.name,
            row.state,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            (row.digest or "")[:12],
        ]
        for row in rows
    ]
    print_table(["part", "node", "state", "seconds", "digest"], cells)
    for row in rows:
        if row.error:
            print(f"{row.name}: {row.error}")


@app.command()
def why(stage: str, directory: RunDirOption = DEFAULT_RUN) -> None:
    """Say why a stage last ran."""
    from loopline.pipeline import why as read_why

    row = read_why(directory, stage)
    print(f"{row.name} ({row.state}): {row.why or 'it has not run yet'}")
    if row.error:
        print(row.error)


@app.command()
def report(
    directory: RunDirOption = DEFAULT_RUN,
    as_json: JsonOption = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the report page of a run, or print its numbers."""
    if as_json:
        from loopline.report.data import build_report

        print(json.dumps(build_report(directory), indent=2))
        return
    from loopline.report.page import write_report

    page = write_report(directory)
    print(page)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command()
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(help="Evaluations, the baseline first: results or RUN:NODE of ours, lm-eval, Inspect, JSONL."),
    ],
    metric: Annotated[str | None, typer.Option(help="Compare this metric or mode only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations item by item with paired tests: better, worse, or not significantly different."""
    from loopline.evaluation.compare import compare as build
    from loopline.evaluation.compare import print_report
    from loopline.evaluation.logs import read_outcomes

    report = build([read_outcomes(argument) for argument in evaluations], metric)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)


ServedArgument = Annotated[
    str | None,
    typer.Argument(help="A checkpoint or release directory, a command's result, a .gguf file; else the champion."),
]


@app.command()
def serve(
    model: ServedArgument = None,
    directory: RunDirOption = DEFAULT_RUN,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    database: Annotated[str | None, typer.Option(help="Where traffic is recorded: a file or URL.")] = None,
) -> None:
    """Serve a model over the OpenAI API, with its own chat template, and record its traffic."""
    from loopline.serve.server import serve as start

    traffic = directory if model is None else Path()
    start(_served(directory, model), host, port, database or traffic / "traffic.sqlite")


@app.command()
def chat(model: ServedArgument = None, directory: RunDirOption = DEFAULT_RUN) -> None:
    """Talk to a model in the terminal."""
    from loopline.serve.chat import chat as talk

    talk(_served(directory, model))


@app.command("chat-check")
def chat_check(
    model: Annotated[str, typer.Argument(help="A checkpoint directory; its tokenizer and chat template are read.")],
    as_json: JsonOption = False,
) -> None:
    """Check a checkpoint's chat template: rendering, masks, stop tokens, tool calls, reasoning."""
    from loopline.chat.check import chat_check as check

    path = Path(model)
    report = check(path / "model" if (path / "model" / "tokenizer.json").exists() else path)
    print(json.dumps(report.to_json(), indent=2) if as_json else "\n".join(report.lines()))
    if not report.passed:
        raise typer.Exit(1)


def _served(directory: Path, model: str | None) -> Path:
    if model is not None:
        from loopline.model.given import PACKAGE, resolve_model

        return resolve_model(model, Path()) if model.startswith(PACKAGE) else Path(model)
    from loopline.store.store import Store

    return Store(directory).ref("champion").path


@loop_app.command("traffic")
def loop_traffic(
    recipe: RecipeArgument = "laptop",
    overrides: SetOption = None,
    directory: DirOption = None,
    seed: SeedOption = None,
    database: Annotated[str | None, typer.Option(help="Recorded traffic; default a scripted client's.")] = None,
) -> None:
    """Traffic to data to a retrained candidate to the gate."""
    from loopline.loops import loop_traffic as turn

    loaded, run_dir = _load(recipe, overrides, seed, directory)
    print(json.dumps(turn(run_dir, loaded, database=database, say=say), indent=2))


@loop_app.command("benchmarks")
def loop_benchmarks(
    recipe: RecipeArgument = "laptop",
    overrides: SetOption = None,
    directory: DirOption = None,
    seed: SeedOption = None,
) -> None:
    """Weak held-out areas to a new mixture to the next pretraining."""
    from loopline.loops import loop_benchmarks as turn

    loaded, run_dir = _load(recipe, overrides, seed, directory)
    print(json.dumps(turn(run_dir, loaded, say=say), indent=2))


@app.command()
def stages(as_json: JsonOption = False) -> None:
    """List the stage kinds that a recipe's line may hold, with what each takes and gives."""
    from loopline.base.stage import AREAS
    from loopline.stages import catalogue

    kinds = sorted(catalogue().values(), key=lambda kind: kind.area)
    if as_json:
        rows = [
            {
                "name": kind.name,
                "area": kind.area,
                "takes": {role: takes.kind for role, takes in kind.takes.items()},
                "gives": kind.gives,
                "summary": kind.summary,
            }
            for kind in kinds
        ]
        print(json.dumps(rows, indent=2))
        return
    cells = [
        [
            f"{kind.area} {AREAS[kind.area]}",
            kind.name,
            ", ".join(f"{role}{'' if takes.required else '?'}" for role, takes in kind.takes.items()),
            kind.gives,
            kind.summary,
        ]
        for kind in kinds
    ]
    print_table(["part of the line", "kind", "takes", "gives", "what it does"], cells)


@app.command("export")
def export_model(
    model: Annotated[str, typer.Argument(help="Checkpoint directory, .gguf file or package:NAME.")],
    out: Annotated[Path, typer.Option(help="Directory to write into.")],
    to: Annotated[str, typer.Option(help="safetensors or gguf.")] = "safetensors",
    type_: Annotated[str, typer.Option("--type", help="GGUF: f16, q8_0, bf16 or f32.")] = "f16",
    dtype: Annotated[str, typer.Option(help="safetensors: source, float32, bfloat16 or float16.")] = "source",
    name: Annotated[str, typer.Option(help="What a GGUF file calls the model.")] = "model",
) -> None:
    """Write a checkpoint as safetensors, or as one GGUF file for llama.cpp."""
    from loopline.release.export import export_model as export

    for file in export(model, out, to=to, type=type_, dtype=dtype, name=name):
        say(f"Wrote {file} ({file.stat().st_size / 1e6:,.1f} MB)")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe."""
    from loopline.recipe import schema as build

    print(json.dumps(build(), indent=2))


@app.command()
def verify(directory: RunDirOption = DEFAULT_RUN) -> None:
    """Check that every artifact still has the content it was committed with."""
    from loopline.store.store import Store

    if not (directory / "store").exists():
        raise UserError(f"There is no run in {directory}", "name the directory of a run with --dir")
    store = Store(directory)
    damaged = store.verify()
    if damaged:
        raise UserError(
            f"{len(damaged)} artifacts changed since they were committed: {', '.join(damaged)}",
            "delete those directories and run the line again",
        )
    print(f"{len(store.artifacts())} artifacts, all as committed")


app.registered_commands += cli_checkpoint.app.registered_commands


def main() -> None:
    """Entry point."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"loopline: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as ending:
        # Typer turns the KeyboardInterrupt of Ctrl-C and SIGTERM into this status without a word.
        if ending.code == INTERRUPTED:
            print("loopline: stopped; run the same command again to go on", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
