"""One command of the user's path: its little line of stages, run by the store in the directory given with --out.

    result = run_command(Request("sft", model=Path("base"), data=Path("train.jsonl"), out=Path("runs/mine")))

What is done stays, what was cut short goes on, and what changed runs again and says why. `OUT/model` points at the
newest result, `loopline status --dir OUT` tells how things stand. Not covered: what the stages do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopline.base.config import Config
from loopline.base.errors import UserError
from loopline.base.stage import StageKind
from loopline.commands.config import GRADER, ReinforceConfig
from loopline.grading.config import GradersConfig
from loopline.grading.graders import load_grader
from loopline.inputs import find_input
from loopline.line import Node
from loopline.model.given import check_directory
from loopline.pipeline import run_line
from loopline.posttrain.preference_config import PreferenceConfig, RewardModelConfig
from loopline.posttrain.reject_config import RejectConfig
from loopline.posttrain.sft_config import SFTConfig
from loopline.recipe import ComputeConfig, Recipe
from loopline.settings import parse_settings, set_value, split_override
from loopline.store.artifact import Artifact
from loopline.store.store import Store
from loopline.tasks.config import DataConfig

COMMANDS: dict[str, type[Config]] = {
    "sft": SFTConfig,
    "reward": RewardModelConfig,
    "dpo": PreferenceConfig,
    "grpo": ReinforceConfig,
    "reject": RejectConfig,
}
"""Command to the config of its main stage."""
STAGES = {"sft": "sft:sft", "reward": "reward:reward", "dpo": "preference:preference"}
"""Functions of the commands that are one stage."""
GRADED = ("grpo", "reject")
"""Commands that take a grader."""
RESULT = "model"
"""Name of the link to the newest result, and of the ref."""


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    command: str
    model: Path
    data: Path
    out: Path
    grader: str | None = None
    columns: str = ""
    overrides: Sequence[str] = ()
    seed: int = 0
    force_grader: bool = False
    heldout: Path | None = None
    reward_model: Path | None = None
    rounds: int = 1
    device: str = "cpu"
    threads: int | None = None


@dataclass
class Job:
    """A request, understood: the stages, their settings and what they are given."""

    line: list[Node]
    sections: dict[str, Config]
    given: dict[str, Path] = field(default_factory=dict)

    def add(
        self,
        name: str,
        area: int,
        function: str,
        inputs: Mapping[str, str],
        section: str = "",
        gives: str = "checkpoint",
    ) -> None:
        """Append a node."""
        settings = self.sections[section or name]
        kind = StageKind(section or name, type(settings), function, gives, area=area)
        files = {role: self.given[source] for role, source in inputs.items() if source in self.given}
        nodes = {role: source for role, source in inputs.items() if source not in self.given}
        self.line.append(Node(name, kind, settings, nodes, files))


def parse_columns(text: str) -> dict[str, str]:
    """`wanted=given,...` as a dict."""
    columns: dict[str, str] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        wanted, equals, given = (word.strip() for word in part.partition("="))
        if not equals or not wanted or not given:
            raise UserError(
                f"--columns {part}: not of the form wanted=given", "write prompt=question,completion=answer"
            )
        columns[wanted] = given
    return columns


def settings_of(request: Request) -> dict[str, Config]:
    """The configs of every section. Raises `UserError` for a setting that does not exist or a value out of bounds."""
    raw: dict[str, Any] = {}
    for text in request.overrides:
        set_value(raw, *split_override(text), text)
    read, probe = raw.pop("read", None) or {}, raw.pop("grader", None) or {}
    if not isinstance(read, dict) or not isinstance(probe, dict):
        raise UserError("--set read=... and --set grader=... name no setting", "write --set read.limit=100")
    read |= {"columns": {**read.pop("columns", {}), **parse_columns(request.columns)}}
    if request.command not in GRADED:
        raw["read"] = read
    main: Any = parse_settings(COMMANDS[request.command], raw, request.command, "--set")
    sections = {request.command: main}
    if request.command in GRADED:
        sections["data"] = parse_settings(DataConfig, read, "read", "--set")
    if request.command in GRADED:
        definition = load_grader(request.grader) if request.grader is not None else {"type": "final_answer"}
        answers = {"max_new_tokens": main.max_new_tokens, "temperature": main.temperature, **(probe.get("probe") or {})}
        probe |= {"definitions": {GRADER: definition}, "force": request.force_grader, "probe": answers}
        sections["grader"] = parse_settings(GradersConfig, probe, "grader", "--set")
    elif request.grader is not None:
        raise UserError(f"`loopline {request.command}` takes no grader", "leave --grader out")
    return sections


def plan_command(request: Request) -> Job:
    """The stages of a request and what they are given. Raises `UserError` for anything missing."""
    if request.command not in COMMANDS:
        raise UserError(f"There is no command {request.command!r}", f"use {', '.join(COMMANDS)}")
    job = Job([], settings_of(request))
    job.given["model"] = check_directory(find_input(str(request.model), Path(), "--model", "model"))
    job.given["file"] = find_input(str(request.data), Path(), "--data", "data")
    here = "loopline.commands"
    if request.command in STAGES:
        function = f"loopline.posttrain.{STAGES[request.command]}"
        job.add(request.command, 5, function, {"policy": "model", "data": "file"})
        return job
    files = {"file": "file"}
    if request.heldout is not None:
        job.given["heldout"] = find_input(str(request.heldout), Path(), "--heldout", "heldout")
        files["heldout"] = "heldout"
    job.add("data", 2, f"{here}.data:data", files, gives="rows")
    given = {"policy": "model", "tasks": "data"}
    job.add("grader", 6, "loopline.evaluation.graders:graders", given, gives="graders")
    inputs = {**given, "graders": "grader"}
    if request.command == "grpo":
        job.add("grpo", 5, "loopline.posttrain.grpo:grpo", inputs)
        return job
    if request.reward_model is not None:
        job.given["reward_model"] = find_input(str(request.reward_model), Path(), "--reward-model", "reward_model")
        inputs["reward_model"] = "reward_model"
    before = "model"
    for number in range(1, request.rounds + 1):
        name = f"reject_{number}"
        job.add(name, 5, "loopline.posttrain.reject:reject", {**inputs, "policy": before}, "reject")
        before = name
    return job


def run_command(request: Request, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run what has to run; returns {"command", "model", "stages", "metrics"}, the path of the result among them.

    Raises `UserError` for anything that the user can mend.
    """
    job = plan_command(request)
    compute = ComputeConfig(device=request.device, threads=request.threads)  # type: ignore[arg-type]
    recipe = Recipe(request.command, request.seed, compute, tuple(job.line))
    before = {artifact.identity for artifact in Store(request.out).artifacts()}
    done = run_line(recipe, request.out, say=say)
    last = done[job.line[-1].name]
    link_result(request.out, last)
    result = {
        "command": request.command,
        "out": str(request.out),
        "model": str(request.out / RESULT),
        "artifact": last.path.relative_to(request.out).as_posix(),
        "stages": [
            {
                "name": spec.name,
                "ran": done[spec.name].identity not in before,
                "metrics": done[spec.name].meta["metrics"],
            }
            for spec in job.line
        ],
        "metrics": last.meta["metrics"],
    }
    ran = any(stage["ran"] for stage in result["stages"])
    say(f"{'Done' if ran else 'Nothing to do: everything is there already'}. Model: {request.out / RESULT}")
    return result


def link_result(out: Path, artifact: Artifact) -> None:
    """Point `OUT/model` at the artifact, in one step."""
    Store(out).set_ref(RESULT, artifact)
    link, temporary = out / RESULT, out / f".{RESULT}.new"
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is in the way of the link to the result {artifact.path}", "move it elsewhere")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(artifact.path.relative_to(out))
    os.replace(temporary, link)


def describe(result: Mapping[str, Any]) -> str:
    """A result in one line, for people."""
    numbers = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in result["metrics"].items()
        if isinstance(value, int | float | str)
    )
    return ", ".join(numbers)
