"""The loops find their nodes by kind, whatever a recipe calls them."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_json
from loopline.base.stage import Takes
from loopline.loops import last_of, loop_benchmarks, loop_traffic
from loopline.recipe import parse_recipe
from tests.support_line import NUMBERS_KINDS
from tests.test_line import kind

HERE = "tests.test_loops"


def decide(config, inputs, ctx):
    write_json(ctx.out / "decision.json", {"decision": "keep", "by": ctx.stage})


def recipe(*line):
    gate = kind("gate", "decision", numbers=Takes("numbers"))
    kinds = {"numbers": NUMBERS_KINDS["numbers"]}
    for name in ("gate", "gate_benchmarks"):
        kinds[name] = type(gate)(name, gate.config, f"{HERE}:decide", "decision", gate.takes)
    return parse_recipe({"line": ["numbers", *line]}, "loops.yaml", kinds=kinds)


def test_a_loop_turns_the_last_gate_of_its_kind(tmp_path):
    chosen = recipe("gate", {"gate": {}, "name": "second"}, "gate_benchmarks")
    assert loop_traffic(tmp_path, chosen)["by"] in ("gate", "second") and last_of(chosen, "gate").name == "second"
    assert loop_benchmarks(tmp_path, chosen) == {"decision": "keep", "by": "gate_benchmarks"}


def test_a_recipe_without_the_loop_says_so(tmp_path):
    with pytest.raises(UserError, match="has no node of the kind gate_benchmarks. Fix: add `- gate_benchmarks`"):
        loop_benchmarks(tmp_path, recipe("gate"))
