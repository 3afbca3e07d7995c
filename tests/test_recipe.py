"""Recipes: mistakes are refused before anything runs, by file, line, key and near miss."""

import re
from pathlib import Path

import pytest
import yaml

from loopline.base.config import Config, identity_of
from loopline.base.errors import UserError
from loopline.recipe import SECTIONS, SHIPPED, find_recipe, load_recipe, parse_recipe, schema
from loopline.stages import catalogue
from tests.json_schema import complaints

RECIPES = sorted(SHIPPED.glob("*.yaml"))
LINE = """
line:
  - raw
  - data
  - plan
  - pretrain
  - sft: {steps: 7}
"""


def load(tmp_path, text, *overrides, seed=None):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_recipe(path, overrides, seed)


def one(tmp_path, node, *overrides):
    """The settings of the one node of a line, whose inputs are given by nodes of defaults."""
    recipe = load(tmp_path, "tasks: {}\n" + f"line: [raw, data, {node}]", *overrides)
    return recipe.nodes[-1].settings


def test_what_a_recipe_leaves_out_keeps_its_default(tmp_path):
    recipe = load(tmp_path, "line: [raw]")
    assert recipe.name == "mine" and recipe.seed == 0 and recipe.compute.device == "cpu"
    assert [node.name for node in recipe.nodes] == ["raw"]
    assert recipe.nodes[0].settings == catalogue()["raw"].config()


def test_a_recipe_without_a_line_is_refused(tmp_path):
    with pytest.raises(UserError, match="mine.yaml: the recipe declares no line. Fix: write `line:`"):
        load(tmp_path, "seed: 1")


def test_a_block_keeps_what_it_does_not_name(tmp_path):
    changed = one(tmp_path, "plan: {schedule: {decay: 0.5}}", "plan.serving.concurrency=3")
    default = catalogue()["plan"].config()
    assert changed.schedule == default.schedule.model_copy(update={"decay": 0.5})
    assert changed.serving == default.serving.model_copy(update={"concurrency": 3})


def test_one_way_to_state_a_budget_replaces_the_other(tmp_path):
    budget = one(tmp_path, "plan: {budget: {minutes: 3}}").budget
    assert (budget.flops, budget.minutes) == (None, 3)


def test_a_source_of_ones_own_has_an_identity(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("one")
    text = f"line: [raw: {{python: null, sources: [{{name: notes, path: {tmp_path / 'notes'}}}]}}]"

    def identity():
        return identity_of(load(tmp_path, text).nodes[0].settings)

    before = identity()
    assert before == identity()
    (tmp_path / "notes" / "a.txt").write_text("another")
    assert before != identity()


def test_given_values_replace_defaults_and_leave_the_rest(tmp_path):
    recipe = load(tmp_path, "name: other\nseed: 4\ncompute: {threads: 1}\nline: [{raw: {python: null}}]\n")
    assert (recipe.name, recipe.seed, recipe.compute.threads) == ("other", 4, 1)
    assert recipe.nodes[0].settings == catalogue()["raw"].config(python=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lien: []", r"mine.yaml, line 1: unknown key 'lien'. Fix: did you mean 'line'\?"),
        ("raw: {}\nline: [raw]", r"line 1: unknown key 'raw'. Fix: put it into the line: `line: \[raw: ...\]`"),
        ("3: 1", "unknown key 3"),
        ("line:\n  - raw: {pyhton: null}", r"mine.yaml, line 2: unknown key raw.pyhton. Fix: did you mean 'python'\?"),
        ("line:\n  - plan:\n      budget:\n        flop: 3", r"line 4: unknown key plan.budget.flop. .*mean 'flops'\?"),
        ("line: [raw: {qqqq: 5}]", "unknown key raw.qqqq. Fix: use one of the keys .*python"),
        ("compute: {thread: 5}\nline: [raw]", r"unknown key compute.thread. Fix: did you mean 'threads'\?"),
        ("compute: {device: tpu}\nline: [raw]", "compute.device: .*'cpu' or 'cuda'.*'tpu'"),
        ("compute: {threads: 0}\nline: [raw]", "compute.threads: .*greater than or equal to 1"),
        ("seed: -1\nline: [raw]", r"line 1: seed: .*greater than or equal to 0 \(found -1\). Fix: change seed"),
        ("name: ../up\nline: [raw]", "name: .*pattern"),
        ("line: 5", "line holds 5 instead of a list"),
        ("line: [5]", "node 1 of the line is 5"),
        ("line: [raw: 5]", "raw holds 5 instead of settings"),
        ("line: [{raw: {}, data: {}}]", r"node 1 of the line names 2 stage kinds \(raw, data\)"),
        ("line:\n  - raw\n  - grop", r"there is no stage kind 'grop'. Fix: did you mean 'grpo'\?"),
        ("line: [{raw: {}, inputs: {x: y}}]", "raw has no input 'x'"),
        ("line: [{raw: {}, from: x}]", "raw takes no input, so `from` means nothing"),
        ("line: [{repeat: {times: 0, line: [raw]}}]", "repeat holds .*'times': 0"),
        ("line: [{include: absent.yaml}]", "no recipe .*absent.yaml"),
        ("evaluate: {after: all}\nline: [raw]", "line 1: `evaluate` needs task sets. Fix: declare them below `tasks:`"),
        ("- raw\n- data", "holds list instead of keys and values"),
        ("just words", "holds str instead of keys and values"),
    ],
)
def test_mistakes_are_refused_by_file_line_and_key_with_the_fix(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, text)
    assert "mine.yaml" in str(caught.value) or "absent" in message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\nline:\n  - raw: [1, 2\nseed: {}\n", 4),
        ("name: x\n\tseed: 1\n", 2),
        ("name: 'open\n", 2),
        ("a: b: c\n", 1),
    ],
)
def test_bad_yaml_is_refused_with_its_line(tmp_path, text, line):
    with pytest.raises(UserError, match=rf"mine.yaml, line {line}, column \d+: not YAML") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"mine.yaml, line 4, column 3: the key 'threads' is given twice"):
        load(tmp_path, "name: x\ncompute:\n  threads: 3\n  threads: 4\n")
    with pytest.raises(UserError, match="gives a key twice"):
        load_recipe(find_recipe("smoke"), ["grpo={steps: 1, steps: 2}"])


def test_what_is_no_recipe_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no recipe .*absent.yaml"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="is a folder, not a recipe"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml: byte 8 is not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(UserError, match="no recipe nowhere. Fix: .* laptop"):
        find_recipe("nowhere")


def test_shipped_recipes_are_found_by_name_from_anywhere_and_files_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("laptop").samefile(SHIPPED / "laptop.yaml")
    (tmp_path / "own.yaml").touch()
    assert find_recipe("own.yaml") == Path("own.yaml")


def test_overrides_reach_any_depth_and_are_yaml(tmp_path):
    recipe = load(
        tmp_path,
        "tasks: {}\n" + LINE,
        "sft.steps=9",
        "sft.optimizer.learning_rate=2e-3",
        "sft.optimizer.kind=muon",
        "plan.over_training=3",
        "compute.threads=1",
        "name=ab",
    )
    sft = recipe.node("sft").settings
    assert (sft.steps, sft.optimizer.learning_rate, sft.optimizer.kind) == (9, 2e-3, "muon")
    assert recipe.node("plan").settings.over_training == 3
    assert (recipe.compute.threads, recipe.name) == (1, "ab")


def test_an_override_means_the_node_of_that_name_else_every_node_of_that_kind(tmp_path):
    line = "[raw, data, plan, pretrain, sft, {sft: {}, name: again}, {repeat: {times: 2, line: [preference]}}]"
    text = "tasks: {}\nline: " + line
    recipe = load(tmp_path, text, "sft.steps=5", "again.steps=6", "preference.steps=7", "preference_2.steps=8")
    steps = {node.name: node.settings.steps for node in recipe.nodes[-4:]}
    assert steps == {"sft": 5, "again": 6, "preference_1": 7, "preference_2": 8}


def test_a_later_override_wins_and_lists_and_maps_are_values(tmp_path):
    recipe = load(tmp_path, "tasks: {}\n" + LINE, "sft.steps=1", "sft.steps=2", "raw.python={code_megabytes: 1.0}")
    assert recipe.node("sft").settings.steps == 2
    assert recipe.node("raw").settings.python.code_megabytes == 1.0


def test_the_seed_option_wins_over_the_file(tmp_path):
    assert load(tmp_path, "seed: 3\nline: [raw]", seed=8).seed == 8
    assert load(tmp_path, "seed: 3\nline: [raw]", "seed=5").seed == 5
    assert load(tmp_path, "seed: 3\nline: [raw]").seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.steps", "--set sft.steps: not of the form key=value"),
        ("=5", "--set =5: not of the form key=value"),
        ("sft.steps=[1", r"--set sft.steps=\[1: the value is not YAML"),
        ("seed.deep=1", "--set seed.deep: seed holds a value, not settings"),
        ("sft=5", "--set sft=5: sft is a node, not a setting"),
        ("sft.stepz=1", r"unknown key sft.stepz. Fix: did you mean 'steps'\?"),
        ("stf.steps=1", r"the recipe has no node 'stf'. Fix: did you mean 'sft'\?"),
        ("grpo.steps=1", r"the recipe has no node 'grpo'. Fix: "),
        ("sft.steps=-3", r"sft.steps: .*greater than or equal to 1 \(found -3\)"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, "seed: 1\ntasks: {}\n" + LINE, override)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An override that gives a recipe a start that is here, in place of one in a package that may not be."""
    path = tmp_path_factory.mktemp("start")
    (path / "model.gguf").touch()
    return {"smollm2": [f"start.model={path / 'model.gguf'}"]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_sound_and_named_as_their_file(path, start):
    recipe = load_recipe(path, start.get(path.stem, ()))
    assert recipe.name == path.stem
    assert complaints(yaml.safe_load(path.read_text()), schema()) == []


def test_every_node_of_a_shipped_recipe_has_an_identity(start):
    for path in RECIPES:
        for node in load_recipe(path, start.get(path.stem, ())).nodes:
            assert isinstance(node.settings, Config) and identity_of(node.settings) is not None


def test_the_schema_describes_every_setting():
    built = schema()
    assert set(built["properties"]) - {"start"} == {
        "name",
        "seed",
        "compute",
        "track",
        "include",
        "line",
        *SECTIONS,
    } - {"start"}
    for text in re.findall(r"'\$ref': '([^']+)'", str(built)):
        assert text.startswith("#/$defs/") and text.removeprefix("#/$defs/") in built["$defs"]
    for name, kind in catalogue().items():
        for key, part in kind.config.model_json_schema().get("properties", {}).items():
            assert part.get("description"), f"{name}.{key} has no description"


def test_no_two_configs_share_a_name_in_the_schema():
    """`$defs` of all kinds share one table: two classes of one name would overwrite each other."""
    known = {}
    for kind in catalogue().values():
        for name, part in kind.config.model_json_schema().get("$defs", {}).items():
            assert known.setdefault(name, part) == part, f"two different configs are called {name}"


def test_a_spoilt_recipe_does_not_fit_the_schema():
    built = schema()
    good = {"tasks": {}, "line": ["raw", {"sft": {"steps": 3}, "name": "a", "from": "b"}]}
    assert complaints(good, built) == []
    for bad in (
        {**good, "gropo": {}},
        {**good, "line": [{"sft": {"stepz": 1}}]},
        {**good, "line": [{"sft": {"steps": 0}}]},
        {**good, "line": [{"sft": {}, "grpo": {}}]},
        {**good, "line": [{"sft": {}, "form": "x"}]},
        {**good, "compute": {"device": "tpu"}},
        {**good, "evaluate": {"after": 5}},
    ):
        assert complaints(bad, built), bad


def test_a_recipe_includes_another_and_lays_its_own_over_it(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "base.yaml").write_text("seed: 4\ncompute: {threads: 2}\ntasks: {}\nline: [raw, data]\n")
    (tmp_path / "parts" / "tail.yaml").write_text("line: [plan, {include: more.yaml}]\n")
    (tmp_path / "parts" / "more.yaml").write_text("line: [pretrain]\n")
    recipe = load(tmp_path, "include: parts/base.yaml\nseed: 5\nline: [{include: parts/tail.yaml}, sft]")
    assert (recipe.seed, recipe.compute.threads) == (5, 2)
    assert [node.name for node in recipe.nodes if node.kind.area not in (6,)][-5:] == [
        "raw",
        "data",
        "plan",
        "pretrain",
        "sft",
    ]


def test_a_mistake_in_an_included_file_names_that_file(tmp_path):
    (tmp_path / "part.yaml").write_text("line:\n  - raw\n  - plan: {budgte: {}}\n")
    with pytest.raises(UserError, match=r"part.yaml, line 3: unknown key plan.budgte"):
        load(tmp_path, "tasks: {}\nline: [raw, data, {include: part.yaml}]")


def test_values_of_a_program_are_a_recipe_too():
    recipe = parse_recipe({"line": [{"raw": {"python": None}}]}, "here", "named")
    assert recipe.name == "named" and recipe.nodes[0].place == "here"
