"""The examples, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loopline.model.checkpoint import save_checkpoint
from tests.support_model import tiny_model, tiny_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny checkpoint directory."""
    root = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer(root / "tokenizer")
    save_checkpoint(tiny_model(vocab_size=tokenizer.vocab_size), root / "tokenizer", root / "model")
    return root / "model"


def loopline(*words, path=()):
    """Run the command as a process; what it printed."""
    places = [*map(str, path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-m", "loopline.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    return done


def installed(folder, name, into):
    """The module of an example as pip would lay it down, without pip."""
    (into / f"{name}.py").write_text((folder / f"{name}.py").read_text())
    info = into / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[loopline.stages]\n{name} = {name}\n")
    return into


def test_a_stage_kind_of_another_package_runs_in_a_line(model, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    path = [installed(EXAMPLES / "own_stage", "my_stages", site)]
    kinds = {row["name"]: row for row in json.loads(loopline("stages", "--json", path=path).stdout)}
    assert kinds["average"]["gives"] == "checkpoint"
    recipe = EXAMPLES / "own_stage" / "recipe.yaml"
    words = ["run", recipe, "--dir", tmp_path / "run", "--set", f"start.model={model}", "--set", "compute.threads=1"]
    loopline(*words, path=path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "run" / "run.json").read_text())["stages"]}
    weights = {
        name: load_file(tmp_path / "run" / rows[name]["path"] / "model.safetensors")
        for name in ("gentle", "bold", "average")
    }
    for key, value in weights["average"].items():
        expected = weights["gentle"][key] / 3 + weights["bold"][key] * 2 / 3
        assert value.sub(expected).abs().max() < 1e-6
    assert any((weights["gentle"][key] != weights["bold"][key]).any() for key in weights["bold"])


def test_without_that_package_the_recipe_says_what_is_missing(model, tmp_path):
    recipe = EXAMPLES / "own_stage" / "recipe.yaml"
    command = [sys.executable, "-m", "loopline.cli", "plan", str(recipe), "--set", f"start.model={model}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "there is no stage kind 'average'" in done.stderr


def test_the_recipe_with_a_folder_of_ones_own_resolves(tmp_path):
    recipe = EXAMPLES / "own_data" / "recipe.yaml"
    rows = json.loads(loopline("plan", recipe, "--until", "data", "--dir", tmp_path / "run", "--json").stdout)
    assert {"tasks", "raw", "data"} <= {row["name"] for row in rows}
