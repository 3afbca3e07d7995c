"""Objectives by name: every one builds, and what does not exist is refused in words."""

import inspect

import pytest

import loopline.rl.objective  # noqa: F401  (adds the reinforcement objectives)
from loopline.base.errors import UserError
from loopline.rl.config import PRESETS
from loopline.training.objectives import DPO, OBJECTIVES, build_objective, register

NEEDED = {"beta": 0.1, "label_smoothing": 0.1}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_builds_by_name(name):
    takes = inspect.signature(OBJECTIVES[name]).parameters
    objective = build_objective(name, **{k: v for k, v in NEEDED.items() if k in takes})
    assert callable(objective.loss)


def test_the_field_is_there():
    wanted = {"next_token", "bradley_terry", "pointwise", "process_reward", "dpo", "ipo", "kto", "orpo", "simpo"}
    assert wanted | set(PRESETS) <= set(OBJECTIVES)
    assert build_objective("dpo_hinge", beta=0.1).kind == "hinge"
    assert build_objective("dapo", temperature=0.7).config.clip_high == 0.28


def test_unknown_names_and_settings_are_refused_with_what_there_is():
    with pytest.raises(UserError, match="bradley_terry"):
        build_objective("bradley")
    with pytest.raises(UserError, match="it takes beta, sft_weight"):
        build_objective("dpo", betta=0.1)
    with pytest.raises(UserError, match="exo_pair needs label_smoothing"):
        build_objective("dpo_exo_pair", beta=0.1)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="already"):
        register("kto", DPO)
