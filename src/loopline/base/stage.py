"""Stage kinds: what a node of a recipe's line may be, registered where its settings are defined.

    @stage("sft", run="loopline.posttrain.sft:sft", takes={"policy": Takes("checkpoint")}, gives="checkpoint")
    class SFTConfig(TrainingConfig): ...

A stage is a plain function `run(config, inputs, ctx)`. It is named by text, so that listing the catalogue imports no
torch. Not covered: which kinds there are (see `loopline.stages`) and running them (see `loopline.pipeline`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from loopline.base.config import Config

AREAS = {
    1: "Raw data",
    2: "Data engineering",
    3: "System recipe",
    4: "Pretraining",
    5: "Post-training",
    6: "Evaluation",
    7: "Agent harness",
    8: "Distillation",
    9: "Deployment",
}
"""The nine parts of the line, by number."""


@dataclass(frozen=True)
class Takes:
    """One input role of a stage kind."""

    kind: str
    """Kind of the artifacts that may fill it; several are separated by `|`."""
    required: bool = True
    """Whether a node without it is refused."""
    many: bool = False
    """Whether it takes several artifacts; each arrives under `<role>.<node>`."""
    by_default: bool = True
    """Filled with the newest artifact of its kind before the node (with `many`: all of them) where the recipe names
    none; false leaves it empty unless the recipe names one."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of artifact that fit."""
        return tuple(self.kind.split("|"))


@dataclass(frozen=True)
class StageKind:
    """One kind of stage."""

    name: str
    """What a recipe calls it."""
    config: type[Config]
    """Its settings."""
    function: str
    """"module:name" of the stage function, imported when it runs."""
    gives: str
    """Kind of its artifact."""
    takes: Mapping[str, Takes] = field(default_factory=dict)
    """Its input roles; `from:` in a recipe fills the first."""
    area: int = 5
    """Which of the nine parts of the line it belongs to."""
    version: int = 1
    """Raised by hand when its results change for the same settings and inputs."""

    @property
    def summary(self) -> str:
        """One sentence on what it does."""
        return (self.config.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")

    def load(self) -> Callable[[Any, Mapping[str, Any], Any], None]:
        """The stage function."""
        module, _, attribute = self.function.partition(":")
        found: Callable[[Any, Mapping[str, Any], Any], None] = getattr(importlib.import_module(module), attribute)
        return found


REGISTRY: dict[str, StageKind] = {}
"""Every kind registered so far, by name."""
Class = TypeVar("Class", bound=type[Config])


def stage(
    name: str, *, run: str, gives: str, takes: Mapping[str, Takes] | None = None, area: int = 5, version: int = 1
) -> Callable[[Class], Class]:
    """Register the decorated config class as the settings of the stage kind `name`.

    Raises `ValueError` when another class has that name.
    """

    def register(config: Class) -> Class:
        known = REGISTRY.get(name)
        if known is not None and (known.config.__module__, known.config.__name__) != (
            config.__module__,
            config.__name__,
        ):
            raise ValueError(f"stage kind {name!r} is defined by {known.config.__module__} and {config.__module__}")
        REGISTRY[name] = StageKind(name, config, run, gives, dict(takes or {}), area, version)
        return config

    return register
