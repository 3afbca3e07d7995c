"""The table of the line: runnable in its order, all names real, configs light and described."""

import inspect
import subprocess
import sys
from typing import Any, get_args

import pytest

from loopline.base.config import Config, identity_of
from loopline.graph import CANDIDATES, CONFIGS, LINE, ROOMS, StageSpec, check, config_class, upstream

LIGHT = """
import sys
from loopline.graph import CONFIGS, config_class
for name in CONFIGS:
    config_class(name)()
heavy = sorted({"torch", "pyarrow", "transformers", "fastapi", "plotly"} & set(sys.modules))
assert not heavy, f"configs import {heavy}"
"""


def configs():
    """Every config class that a recipe can reach."""
    found: dict[type[Config], str] = {}

    def visit(kind: Any, where: str) -> None:
        if isinstance(kind, type) and issubclass(kind, Config):
            if kind not in found:
                found[kind] = where
                for name, info in kind.model_fields.items():
                    visit(info.annotation, f"{where}.{name}")
            return
        for part in get_args(kind):
            visit(part, where)

    for section in CONFIGS:
        visit(config_class(section), section)
    return found


def test_the_line_can_run_in_its_order():
    check(LINE)
    seen = set()
    for spec in LINE:
        assert set(spec.inputs.values()) <= seen
        seen.add(spec.name)


def test_every_room_has_a_stage_and_every_section_is_used():
    assert {spec.room for spec in LINE} == set(ROOMS) == set(range(1, 10))
    assert {spec.recipe_section for spec in LINE} == set(CONFIGS)


def test_every_stage_function_exists_and_takes_config_inputs_and_context():
    for spec in LINE:
        assert list(inspect.signature(spec.load()).parameters) == ["config", "inputs", "ctx"], spec.name


def test_every_candidate_for_release_is_trained_evaluated_and_handed_to_the_release():
    release = next(spec for spec in LINE if spec.name == "release")
    for name in CANDIDATES:
        assert release.inputs[f"candidates.{name}"] == name
        evaluation = next(spec for spec in LINE if spec.name == release.inputs[f"evaluations.{name}"])
        assert evaluation.inputs["checkpoint"] == name


def test_upstream_is_what_a_stage_needs_and_no_more():
    names = [spec.name for spec in upstream(LINE, "grpo")]
    assert names == ["raw", "tasks", "data", "graders", "plan", "pretrain", "sft", "grpo"]
    for spec in LINE:
        part = upstream(LINE, spec.name)
        check(part)
        assert part[-1] is spec
    with pytest.raises(KeyError):
        upstream(LINE, "nowhere")


def test_a_wrong_table_is_refused():
    first, second = StageSpec("a", 1, "m:f"), StageSpec("b", 1, "m:f", {"x": "a"})
    check([first, second])
    with pytest.raises(ValueError, match="b: needs a"):
        check([second, first])
    with pytest.raises(ValueError, match="a: appears twice"):
        check([first, first])


def test_every_config_is_imported_and_built_without_heavy_modules():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_setting_has_a_description_and_every_config_a_docstring():
    for kind, where in configs().items():
        assert kind.__doc__, f"{where} ({kind.__name__}) has no docstring"
        for name, info in kind.model_fields.items():
            assert info.description, f"{where}.{name} has no description"


def test_every_section_has_an_identity_made_of_json_only():
    for section in CONFIGS:
        identity = identity_of(config_class(section)())
        assert isinstance(identity, dict) and "runtime" not in identity, section
