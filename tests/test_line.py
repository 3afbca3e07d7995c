"""A declared line resolves to nodes: names, inputs by role, repetitions, evaluations, and what is refused."""

import inspect
import subprocess
import sys
from typing import Any, get_args

import pytest

from loopline.base.config import Config, identity_of
from loopline.base.errors import UserError
from loopline.base.stage import AREAS, StageKind, Takes, stage
from loopline.line import upstream
from loopline.recipe import SHIPPED, load_recipe, parse_recipe
from loopline.stages import catalogue

LIGHT = """
import sys
from loopline.stages import catalogue
for kind in catalogue().values():
    kind.config
heavy = sorted({"torch", "pyarrow", "transformers", "fastapi", "plotly"} & set(sys.modules))
assert not heavy, f"configs import {heavy}"
"""


class Plain(Config):
    """Nothing to set."""


def kind(name: str, gives: str, **takes: Takes) -> StageKind:
    return StageKind(name, Plain, "tests.test_line:none", gives, takes)


POLICY = Takes("checkpoint")
MANY = {"candidates": Takes("checkpoint", many=True), "evaluations": Takes("evaluation", many=True)}
KINDS = {
    item.name: item
    for item in (
        kind("tasks", "tasks"),
        kind("graders", "graders", tasks=Takes("tasks")),
        kind("base", "checkpoint"),
        kind("tune", "checkpoint", policy=POLICY),
        kind("mix", "checkpoint", first=POLICY, second=Takes("checkpoint", required=False, by_default=False)),
        kind("evaluate", "evaluation", checkpoint=POLICY, tasks=Takes("tasks"), graders=Takes("graders")),
        kind("release", "release", **MANY),
    )
}  # fmt: skip


def nodes(line, **sections):
    """Name to inputs of the resolved line."""
    recipe = parse_recipe({"line": line, **sections}, "r.yaml", kinds=KINDS)
    return {node.name: dict(node.inputs) for node in recipe.nodes}


def test_a_policy_is_the_newest_checkpoint_before_the_node_unless_named():
    found = nodes(["base", "tune", {"tune": {}, "name": "branch", "from": "base"}, "tune"])
    assert found == {
        "base": {},
        "tune": {"policy": "base"},
        "branch": {"policy": "base"},
        "tune_2": {"policy": "branch"},
    }


def test_inputs_by_role_and_roles_that_are_never_filled_by_default():
    assert nodes(["base", "tune", "mix"])["mix"] == {"first": "tune"}
    line = ["base", "tune", {"mix": {}, "from": "base", "inputs": {"second": "tune"}}]
    assert nodes(line)["mix"] == {"first": "base", "second": "tune"}


def test_repetitions_are_numbered_and_chained_and_named_from_inside_and_outside():
    again = {"repeat": {"times": 2, "line": ["tune", {"mix": {}, "inputs": {"second": "tune"}}]}}
    found = nodes(["base", again, {"mix": {}, "name": "last", "from": "tune"}])
    assert found == {
        "base": {},
        "tune_1": {"policy": "base"},
        "mix_1": {"first": "tune_1", "second": "tune_1"},
        "tune_2": {"policy": "mix_1"},
        "mix_2": {"first": "tune_2", "second": "tune_2"},
        "last": {"first": "tune_2"},
    }


def test_a_repetition_of_one_carries_no_number():
    assert list(nodes(["base", {"repeat": {"times": 1, "line": ["tune"]}}])) == ["base", "tune"]


def test_evaluations_stand_after_their_checkpoints_and_feed_a_release():
    again = {"repeat": {"times": 2, "line": ["tune"]}}
    found = nodes(["base", again, "release"], tasks={}, evaluate={"after": "all"})
    names = ["tasks", "graders", "base", "evaluate_base", "tune_1", "evaluate_tune_1", "tune_2", "evaluate_tune_2"]
    assert list(found) == [*names, "release"]
    assert found["evaluate_tune_1"] == {"checkpoint": "tune_1", "tasks": "tasks", "graders": "graders"}
    assert found["release"]["evaluations.evaluate_tune_2"] == "evaluate_tune_2"
    assert found["release"]["candidates.base"] == "base"
    chosen = nodes(["base", again, {"release": {}, "from": ["tune"]}], tasks={}, evaluate={"after": ["tune"]})
    assert "evaluate_base" not in chosen and "candidates.base" not in chosen["release"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["tune"], "r.yaml: tune needs a checkpoint as its input 'policy', and no node before it gives one. Fix: put"),
        ([{"tune": {}, "from": "base"}, "base"], "takes 'policy' from 'base', and no node before.* It comes later"),
        (["base", {"tune": {}, "from": "bsae"}], r"no node before it has that name. Fix: did you mean 'base'\?"),
        (["base", {"tune": {}, "from": ["base", "base"]}], "the input 'policy' of tune takes one node"),
        (["base", {"release": {}, "inputs": {"evaluations": "base"}}], "is a evaluation, and base gives a checkpoint"),
        (["base", {"tune": {}, "name": "base"}], "two nodes are called 'base'"),
    ],
)
def test_what_does_not_resolve_is_refused_with_its_place(line, message):
    with pytest.raises(UserError, match=message):
        nodes(line)


def test_evaluate_after_an_unknown_node_is_refused():
    with pytest.raises(UserError, match="evaluate.after names 'tnue', which is no node that gives a checkpoint"):
        nodes(["base", "tune"], tasks={}, evaluate={"after": ["tnue"]})


def test_upstream_is_what_a_node_needs():
    recipe = load_recipe(SHIPPED / "smoke.yaml")
    names = [node.name for node in upstream(recipe.nodes, ["sft"])]
    assert names == ["tasks", "raw", "data", "plan", "pretrain", "sft"]


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

    for name, item in catalogue().items():
        visit(item.config, name)
    return found


def test_every_part_of_the_line_has_a_kind():
    assert {item.area for item in catalogue().values()} == set(AREAS) == set(range(1, 10))


def test_every_stage_function_exists_and_takes_config_inputs_and_context():
    for item in catalogue().values():
        assert list(inspect.signature(item.load()).parameters) == ["config", "inputs", "ctx"], item.name


def test_every_kind_has_a_summary_and_every_field_a_description_and_an_identity():
    for item in catalogue().values():
        assert item.summary.endswith("."), item.name
    for config, where in configs().items():
        for name, info in config.model_fields.items():
            assert info.description, f"{where}.{name} ({config.__name__}) has no description"


def test_what_every_role_takes_some_kind_gives():
    given = {item.gives for item in catalogue().values()}
    for item in catalogue().values():
        for role, takes in item.takes.items():
            assert set(takes.kinds) & given, f"{item.name}.{role}"


def test_listing_the_catalogue_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_kind_is_defined_once():
    with pytest.raises(ValueError, match="stage kind 'sft' is defined by"):
        stage("sft", run="a:b", gives="checkpoint")(Plain)


def test_settings_that_are_no_identity_leave_the_rest_of_it():
    for item in catalogue().values():
        try:
            settings = item.config()
        except ValueError:
            continue  # Some kinds have a setting without a default.
        assert identity_of(settings) is not None
