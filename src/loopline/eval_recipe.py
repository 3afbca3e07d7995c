"""`loopline eval`: a checkpoint or an endpoint on task sets, as a short recipe.

    recipe = eval_recipe(EvalRequest("qwen3-0.6b", ["gsm8k/test.jsonl"], Path("runs/eval")))

A task set is a file in a known form, `NAME=FILE`, a generator's name, `reasoning_gym:DATASET`, or a YAML file with
`tasks:` as in a recipe. Every row is asked; nothing is trained. Not covered: comparing results (`loopline compare`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.recipe import Recipe, parse_recipe
from loopline.yaml_file import read_yaml

EVERY = 10**9
"""Tasks of a set at most: all of them."""
ANSWER = 512
"""Tokens of an answer, unless a setting overrides it."""


@dataclass(frozen=True)
class EvalRequest:
    """What a user asked for."""

    model: str
    """A checkpoint directory, a .gguf file, `package:NAME`, or the URL of an OpenAI-compatible API."""
    tasks: Sequence[str]
    out: Path
    text: str | None = None
    """A plain text file to measure bits per byte on."""
    grader: str | None = None
    """In place of the form's own: a ready grader's name, or a .json or .py file."""
    endpoint_model: str | None = None
    """What the endpoint calls the model."""
    key_env: str | None = None
    """Environment variable with the endpoint's key."""
    force_grader: bool = False
    overrides: Sequence[str] = ()
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None


def is_url(model: str) -> bool:
    """Whether a model is an endpoint rather than a directory."""
    return model.startswith(("http://", "https://"))


def eval_recipe(request: EvalRequest) -> Recipe:
    """The resolved recipe of an evaluation. Raises `UserError` for whatever does not resolve."""
    compute = {"device": request.device, "threads": request.threads}
    evaluate: dict[str, Any] = {"parts": ["heldout"], "modes": ["greedy"], "n": EVERY, "max_new_tokens": ANSWER}
    raw: dict[str, Any] = {"name": "eval", "seed": request.seed, "compute": compute, "line": [{"evaluate": evaluate}]}
    if is_url(request.model):
        if request.endpoint_model is None:
            raise UserError(f"{request.model} is an endpoint, and --name is missing", "give what it calls the model")
        endpoint = {"url": request.model, "model": request.endpoint_model, "key_env": request.key_env}
        evaluate["endpoint"] = endpoint
    else:
        raw["start"] = {"model": request.model}
    if request.text is not None:
        evaluate["text"] = request.text
    sets: dict[str, Any] = {}
    for word in request.tasks:
        for name, found in read_sets(word).items():
            if name in sets:
                raise UserError(f"--tasks {word}: there are two task sets called {name}", "write NAME=FILE for one")
            sets[name] = {**found, "grader": request.grader} if request.grader else found
    if not sets:
        raise UserError("Nothing is asked", "name a task set with --tasks FILE")
    raw |= {"tasks": sets, "graders": {"force": request.force_grader, "probe": {"prompts": 0}, "overlong": "drop"}}
    own = ("tasks", "graders", "start")
    texts = [text if text.partition(".")[0] in own else f"evaluate.{text}" for text in request.overrides]
    return parse_recipe(raw, "loopline eval", overrides=texts)


def read_sets(word: str) -> dict[str, dict[str, Any]]:
    """The task sets that one `--tasks` names, by name."""
    name, equals, rest = word.partition("=")
    if not equals:
        name, rest = "", word
    path = Path(rest)
    if path.suffix in (".yaml", ".yml"):
        sets = read_yaml(path).get("tasks")
        if not isinstance(sets, dict):
            raise UserError(f"{path} holds no task sets", "write `tasks:` with a name and settings for each below it")
        return {
            str(key): {**value, **{k: str(path.parent / value[k]) for k in ("file", "heldout") if _is_path(value, k)}}
            for key, value in sets.items()
        }
    if path.is_file():
        return {name or path.name.partition(".")[0]: {"heldout": str(path)}}
    if ":" in rest:
        return {name or rest.partition(":")[2]: {"package": rest}}
    if path.suffix or "/" in rest:
        raise UserError(f"--tasks {word}: there is no file {rest}", "check the path")
    return {name or rest: {"generator": rest}}


def _is_path(value: Any, key: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(key), str)
