"""Objectives by name.

    objective = build_objective("dpo", beta=0.1)

`rl.objective` adds the reinforcement objectives when it is imported. A new objective needs one class with `loss` and
one `register`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from loopline.base.errors import UserError
from loopline.training.objectives.objective import Objective
from loopline.training.objectives.preference import CPO, DPO, KTO, ORPO, PAIR_LOSSES, SimPO
from loopline.training.objectives.reward_model import BradleyTerry, Pointwise, ProcessReward
from loopline.training.objectives.supervised import NextToken

OBJECTIVES: dict[str, Callable[..., Objective]] = {}
"""Name -> what builds the objective from its settings."""


def register(name: str, make: Callable[..., Objective]) -> None:
    """Add an objective. Raises `ValueError` for a name that stands for another one."""
    if OBJECTIVES.get(name, make) is not make:
        raise ValueError(f"there is an objective {name!r} already")
    OBJECTIVES[name] = make


def build_objective(name: str, **settings: Any) -> Objective:
    """The objective of that name with those settings. Raises `UserError` for names and settings that do not exist."""
    if name not in OBJECTIVES:
        raise UserError(f"There is no objective {name!r}", f"use one of {', '.join(sorted(OBJECTIVES))}")
    make = OBJECTIVES[name]
    known = inspect.signature(make).parameters
    try:
        inspect.signature(make).bind(**settings)
    except TypeError as error:
        raise UserError(
            f"The objective {name!r} does not take these settings: {error}",
            f"it takes {', '.join(known) if known else 'none'}",
        ) from error
    try:
        return make(**settings)
    except ValueError as error:
        raise UserError(
            f"The objective {name!r} refuses these settings: {error}", "change the setting named"
        ) from error


register("next_token", NextToken)
register("dynamic_next_token", partial(NextToken, dynamic=True))
register("dpo", DPO)
for _kind in PAIR_LOSSES:
    if _kind != "sigmoid":
        register(f"dpo_{_kind}" if _kind != "ipo" else "ipo", partial(DPO, kind=_kind))
register("kto", KTO)
register("orpo", ORPO)
register("simpo", SimPO)
register("cpo", CPO)
register("bradley_terry", BradleyTerry)
register("pointwise", Pointwise)
register("process_reward", ProcessReward)
