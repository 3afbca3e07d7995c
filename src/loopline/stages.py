"""The catalogue of stage kinds: those of this project, and those that installed packages add.

    catalogue()["sft"].summary          # `loopline stages` prints it

A kind is registered where its settings are defined (`loopline.base.stage`). Another package adds kinds by an entry
point of the group "loopline.stages" that names the module in which they are registered:

    [project.entry-points."loopline.stages"]
    mine = "my_package.stages"

Listing imports no torch. Not covered: which kinds a recipe uses (see `loopline.recipe`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache

from loopline.base.errors import UserError
from loopline.base.stage import REGISTRY, StageKind

MODULES = (
    "loopline.tasks.config",
    "loopline.corpus.config",
    "loopline.plan.config",
    "loopline.pretrain.config",
    "loopline.grading.config",
    "loopline.evaluation.config",
    "loopline.posttrain.start_config",
    "loopline.posttrain.sft_config",
    "loopline.posttrain.config",
    "loopline.posttrain.reject_config",
    "loopline.posttrain.preference_config",
    "loopline.agents.config",
    "loopline.distill.config",
    "loopline.release.config",
    "loopline.serve.config",
    "loopline.release.export_config",
)
"""Where this project's kinds are registered, in the order of the line."""
GROUP = "loopline.stages"


def catalogue() -> dict[str, StageKind]:
    """Every stage kind by name, this project's first. Raises `UserError` for a package whose module fails to import."""
    _load()
    return dict(REGISTRY)


@cache
def _load() -> None:
    for module in MODULES:
        importlib.import_module(module)
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"The package {point.dist.name if point.dist else point.value} adds stage kinds, but its module "
                f"{point.value} cannot be imported ({type(error).__name__}: {error})",
                "repair or uninstall that package",
            ) from error
