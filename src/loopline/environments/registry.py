"""Environments by name: the built-in ones, those of other packages, and a user's class.

    environment = load_environment("search", tasks_directory, graders, part="dev")
    environment = load_environment("my_package.shop:Shop", tasks_directory, graders, part="dev")

A class has `from_tasks(tasks, graders, part=...)`, where `tasks` is the directory of a tasks artifact. Packages add
names under the entry point group `loopline.environments`. Not covered: environments on another machine.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from loopline.base.errors import UserError
from loopline.environments.environment import Environment, OutcomeGraders

GROUP = "loopline.environments"
ENVIRONMENTS = {"search": "loopline.environments.search:SearchEnvironment"}


class EnvironmentClass(Protocol):
    """What a name refers to."""

    def from_tasks(self, tasks: Path, graders: OutcomeGraders | None, part: str | None = None) -> Environment:
        """The environment over one part of a tasks artifact."""
        ...


def environment_names() -> dict[str, str]:
    """Name -> "module:Class" of everything registered."""
    return ENVIRONMENTS | {entry.name: entry.value for entry in entry_points(group=GROUP)}


def environment_class(name: str) -> EnvironmentClass:
    """The class behind a registered name or "module:Class". Raises `UserError` when there is none."""
    known = environment_names()
    module, separator, attribute = known.get(name, name).partition(":")
    if not separator:
        raise UserError(
            f"There is no environment {name!r}", f'use one of {", ".join(sorted(known))}, or "module:Class" of your own'
        )
    here = str(Path.cwd())
    if here not in sys.path:
        # A user's module beside the recipe is found as `python -m` would find it.
        sys.path.insert(0, here)
    try:
        found: EnvironmentClass = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"The environment {name!r} cannot be imported ({error})", "install its package, or correct the name"
        ) from error
    if not hasattr(found, "from_tasks"):
        raise UserError(
            f"The environment {name!r} has no `from_tasks`", "give the class that method (see environments)"
        )
    return found


def load_environment(name: str, tasks: Path, graders: OutcomeGraders | None, part: str | None) -> Environment:
    """The environment `name` over one part of a tasks artifact."""
    return environment_class(name).from_tasks(tasks, graders, part=part)


def default_environment(tasks: Path) -> str | None:
    """`search` where the tasks artifact has documents."""
    return "search" if (tasks / "documents.jsonl").exists() else None
