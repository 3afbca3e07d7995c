"""Commands as short recipes: one stage on one checkpoint, run by the same pipeline in the directory given with --out.

    result = run_command(Request("sft", model="qwen3-0.6b", data="chats.jsonl", out=Path("runs/mine")))

`recipe_of` gives the recipe of a command; `loopline status --dir OUT` and a second run work as for any other.
`OUT/model` points at the newest result. Not covered: what the stages do (`loopline stages`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.line import Node
from loopline.pipeline import headline, run_line
from loopline.recipe import Recipe, parse_recipe
from loopline.store.artifact import Artifact
from loopline.store.store import Store

ON_FILES = {"sft": "sft", "reward": "reward", "dpo": "preference"}
"""Commands that train on a file of rows, and their stage kinds."""
ON_TASKS = ("grpo", "reject", "align", "distill")
"""Commands that train on what the policy answers to prompts."""
SET = "prompts"
"""Name of the one task set of a command on prompts."""
RESULT = "model"
"""Name of the link to the newest result, and of the ref."""
RESULTS = ("checkpoint", "reward_model", "export")
"""Kinds of artifact that are a command's result."""


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    command: str
    model: str
    out: Path
    data: str | None = None
    columns: str = ""
    """`wanted=given,...`."""
    grader: str | None = None
    heldout: str | None = None
    """A file of prompts that nothing may be trained on."""
    student: str | None = None
    reward_model: str | None = None
    rounds: int = 1
    force_grader: bool = False
    overrides: Sequence[str] = ()
    """Settings of the command's stage, `key=value`; `tasks.key` and `graders.key` are those of the prompts and of the
    graders' audit."""
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None


def parse_columns(text: str) -> dict[str, str]:
    """`wanted=given,...` as a dict. Raises `UserError` for anything else."""
    columns: dict[str, str] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        wanted, equals, given = (word.strip() for word in part.partition("="))
        if not equals or not wanted or not given:
            raise UserError(
                f"--columns {part}: not of the form wanted=given", "write prompt=question,completion=answer"
            )
        columns[wanted] = given
    return columns


def recipe_of(request: Request) -> Recipe:
    """The resolved recipe of a command. Raises `UserError` for whatever does not resolve."""
    compute = {"device": request.device, "threads": request.threads}
    raw: dict[str, Any] = {"name": request.command, "seed": request.seed, "compute": compute}
    raw["start"] = {"model": request.model}
    columns = parse_columns(request.columns)
    if request.command in ON_FILES:
        kind = ON_FILES[request.command]
        raw["line"] = [
            {kind: {"data": _needed(request, "data"), **({"read": {"columns": columns}} if columns else {})}}
        ]
    elif request.command in ON_TASKS:
        kind = request.command
        raw |= _on_tasks(request, columns)
    else:
        kind = request.command
        raw["line"] = [kind]
    own = ("tasks", "graders", "start")
    texts = [text if text.partition(".")[0] in own else f"{kind}.{text}" for text in request.overrides]
    texts = [text.replace("tasks.", f"tasks.{SET}.", 1) if text.startswith("tasks.") else text for text in texts]
    return parse_recipe(raw, f"loopline {request.command}", overrides=texts)


def _on_tasks(request: Request, columns: Mapping[str, str]) -> dict[str, Any]:
    """Task set, graders and line of a command on prompts."""
    rows: dict[str, Any] = {"file": _needed(request, "data"), "heldout": request.heldout or 0.0, "dev": 0.0, **columns}
    rows["overlap"] = "drop"  # --heldout is given to keep its prompts out of --data, not to promise that they are.
    if request.grader is not None:
        rows["grader"] = request.grader
    node: dict[str, Any] = {request.command: {}}
    if request.student is not None:
        node[request.command]["student"] = request.student
    if request.reward_model is not None:
        node[request.command]["reward_model"] = request.reward_model
    line = [node] if request.rounds == 1 else [{"repeat": {"times": request.rounds, "line": [node]}}]
    return {"tasks": {SET: rows}, "graders": {"force": request.force_grader}, "line": line}


def _needed(request: Request, name: str) -> str:
    value = getattr(request, name)
    if value is None:
        raise UserError(f"`loopline {request.command}` needs --{name}", f"name a file with --{name}")
    return str(value)


def run_command(request: Request, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run what has to run; returns {"command", "out", "model", "artifact", "nodes", "metrics"}.

    Raises `UserError` for anything that the user can fix.
    """
    recipe = recipe_of(request)
    before = {artifact.identity for artifact in Store(request.out).artifacts()}
    done = run_line(recipe, request.out, say=say)
    last = result_node(recipe)
    artifact = done[last.name]
    link_result(request.out, artifact)
    nodes = [
        {"name": node.name, "ran": done[node.name].identity not in before, "metrics": done[node.name].meta["metrics"]}
        for node in recipe.nodes
    ]
    ran = any(node["ran"] for node in nodes)
    model = request.out / RESULT
    say(f"{'Done' if ran else 'Nothing to do: everything is there already'}. Result: {model}")
    return {
        "command": request.command,
        "out": str(request.out),
        "model": str(model),
        "artifact": artifact.path.relative_to(request.out).as_posix(),
        "nodes": nodes,
        "metrics": artifact.meta["metrics"],
        "headline": headline(artifact.meta["metrics"]),
    }


def result_node(recipe: Recipe) -> Node:
    """The node whose artifact is a command's result: the last that gives one."""
    return [node for node in recipe.nodes if node.kind.gives in RESULTS][-1]


def link_result(out: Path, artifact: Artifact) -> None:
    """Point `OUT/model` at the artifact, in one step."""
    Store(out).set_ref(RESULT, artifact)
    link, temporary = out / RESULT, out / f".{RESULT}.new"
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is in the way of the link to the result {artifact.path}", "move it elsewhere")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(artifact.path.relative_to(out))
    os.replace(temporary, link)
