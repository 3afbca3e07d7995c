"""Recipes: mistakes are refused before anything runs, by file, key and near miss."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from loopline.graph import CONFIGS, LINE, config_class

from loopline.base.config import Config, identity_of
from loopline.base.errors import UserError
from loopline.recipe import find_recipe, load_recipe, parse_recipe, schema
from tests.json_schema import complaints

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def load(tmp_path, text, *overrides, seed=None):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_recipe(path, overrides, seed)


def plain(recipe):
    """A resolved recipe as the values of a recipe file."""
    sections = {name: config.model_dump(mode="json") for name, config in recipe.sections.items()}
    return {**recipe.model_dump(mode="json"), **sections}


def test_an_empty_recipe_is_all_defaults(tmp_path):
    recipe = load(tmp_path, "")
    assert recipe.name == "mine" and recipe.seed == 0 and recipe.compute.device == "cpu"
    assert set(recipe.sections) == set(CONFIGS)
    assert all(recipe.section(name) == config_class(name)() for name in CONFIGS)


def test_a_block_keeps_what_it_does_not_name(tmp_path):
    recipe = load(tmp_path, "rft: {optimizer: {learning_rate: 0.5}}", "rft.schedule.warmup=0.3")
    default, changed = config_class("rft")(), recipe.section("rft")
    assert changed.optimizer == default.optimizer.model_copy(update={"learning_rate": 0.5})
    assert changed.schedule == default.schedule.model_copy(update={"warmup": 0.3})
    # All but the two changed values are those of the stage, not of the block's class.
    assert default.optimizer != type(default.optimizer)() and default.schedule != type(default.schedule)()


def test_one_way_to_state_a_budget_replaces_the_other(tmp_path):
    budget = load(tmp_path, "plan: {budget: {minutes: 3}}").section("plan").budget
    assert (budget.flops, budget.minutes) == (None, 3)


def test_a_source_of_ones_own_has_an_identity(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("one")
    text = f"raw: {{python: null, sources: [{{name: notes, path: {tmp_path / 'notes'}}}]}}"
    before = identity_of(load(tmp_path, text).section("raw"))
    assert before == identity_of(load(tmp_path, text).section("raw"))
    (tmp_path / "notes" / "a.txt").write_text("another")
    assert before != identity_of(load(tmp_path, text).section("raw"))


def test_given_values_replace_defaults_and_leave_the_rest(tmp_path):
    recipe = load(tmp_path, "name: other\nseed: 4\ncompute: {threads: 1}\ngrpo:\n  steps: 7\n")
    assert (recipe.name, recipe.seed, recipe.compute.threads) == ("other", 4, 1)
    assert recipe.section("grpo") == config_class("grpo")(steps=7)
    assert recipe.section("sft") == config_class("sft")()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gropo: {steps: 5}", r"mine.yaml: unknown section 'gropo'. Fix: did you mean 'grpo'\?"),
        ("zzzzzz: 1", r"unknown section 'zzzzzz'. Fix: use one of the sections name, seed, compute, raw"),
        ("3: 1", "unknown section 3"),
        ("sections: {}", "unknown section 'sections'"),
        ("grpo: {stepz: 5}", r"mine.yaml: unknown key grpo.stepz. Fix: did you mean 'steps'\?"),
        ("sft: {optimizer: {lerning_rate: 1}}", r"unknown key sft.optimizer.lerning_rate.*mean 'learning_rate'\?"),
        ("grpo: {qqqq: 5}", "unknown key grpo.qqqq. Fix: use one of the keys .*steps"),
        ("compute: {thread: 5}", r"unknown key compute.thread. Fix: did you mean 'threads'\?"),
        ("grpo: {steps: 0}", r"grpo.steps: .*greater than or equal to 1 \(given 0\). Fix: change grpo.steps"),
        ("grpo: {steps: many}", "grpo.steps: .*integer.* \\(given 'many'\\)"),
        ("grpo: {steps: .inf}", "grpo.steps"),
        ("sft: {optimizer: {beta1: 1.0}}", "sft.optimizer.beta1: .*less than 1"),
        ("sft: {shares: {code: .nan}}", "sft.shares"),
        ("compute: {device: tpu}", "compute.device: .*'cpu' or 'cuda'.*'tpu'"),
        ("compute: {threads: 0}", "compute.threads: .*greater than or equal to 1"),
        ("seed: -1", "seed: .*greater than or equal to 0"),
        ("name: ../up", "name: .*pattern"),
        ("grpo: 5", "grpo holds 5 instead of settings. Fix: write keys below `grpo:`"),
        ("grpo: [1, 2]", r"grpo holds \[1, 2\] instead of settings"),
        ("- raw\n- data", "holds list instead of keys and values"),
        ("just words", "holds str instead of keys and values"),
        ("grpo: {steps: 0, stepz: 1}", r"and 1 more"),
    ],
)
def test_mistakes_are_refused_by_file_and_key_with_the_fix(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, text)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\ngrpo:\n  steps: [1, 2\nsft: {}\n", 4),
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
    with pytest.raises(UserError, match=r"mine.yaml, line 4, column 3: the key 'steps' is given twice"):
        load(tmp_path, "name: x\ngrpo:\n  steps: 3\n  steps: 4\n")
    with pytest.raises(UserError, match="gives a key twice"):
        load_recipe(Path("recipes/smoke.yaml"), ["grpo={steps: 1, steps: 2}"])


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
    assert find_recipe("laptop").samefile(SHIPPED[0].parent / "laptop.yaml")
    (tmp_path / "own.yaml").touch()
    assert find_recipe("own.yaml") == Path("own.yaml")


def test_overrides_reach_any_depth_and_are_yaml(tmp_path):
    recipe = load(
        tmp_path,
        "grpo: {steps: 5}\nsft:\n",
        "grpo.steps=9",
        "sft.optimizer.learning_rate=2e-3",
        "sft.optimizer.kind=muon",
        "align.steps=3",
        "compute.threads=1",
        "name=ab",
    )
    assert recipe.section("grpo").steps == 9
    assert recipe.section("sft").optimizer.learning_rate == 2e-3
    assert recipe.section("sft").optimizer.kind == "muon"
    assert recipe.section("align").steps == 3
    assert (recipe.compute.threads, recipe.name) == (1, "ab")


def test_a_later_override_wins_and_lists_and_maps_are_values(tmp_path):
    recipe = load(tmp_path, "", "grpo.steps=1", "grpo.steps=2", "sft.shares={code: 1.0}")
    assert recipe.section("grpo").steps == 2
    assert recipe.section("sft").shares == {"code": 1.0}


def test_the_seed_option_wins_over_the_file(tmp_path):
    assert load(tmp_path, "seed: 3", seed=8).seed == 8
    assert load(tmp_path, "seed: 3", "seed=5").seed == 5
    assert load(tmp_path, "seed: 3").seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.steps", "--set grpo.steps: not of the form key=value"),
        ("=5", "--set =5: not of the form key=value"),
        ("grpo.steps=[1", r"--set grpo.steps=\[1: the value is not YAML"),
        ("seed.deep=1", "--set seed.deep=1: seed holds a value, not settings"),
        ("grpo.stepz=1", r"unknown key grpo.stepz. Fix: did you mean 'steps'\?"),
        ("gropo.steps=1", r"unknown section 'gropo'. Fix: did you mean 'grpo'\?"),
        ("grpo.steps=-3", r"grpo.steps: .*greater than or equal to 1 \(given -3\)"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, "seed: 1", override)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_sound_and_named_as_their_file(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert complaints(yaml.safe_load(path.read_text()), schema()) == []


def test_a_resolved_recipe_means_the_same_and_every_stage_has_an_identity():
    recipe = load_recipe(find_recipe("smoke"))
    again = parse_recipe(plain(recipe), "again")
    for spec in LINE:
        section = spec.recipe_section
        assert identity_of(again.section(section)) == identity_of(recipe.section(section))
        assert isinstance(again.section(section), Config)


def test_the_schema_describes_every_setting():
    built = schema()
    assert set(built["properties"]) == {"name", "seed", "compute", *CONFIGS}
    for text in re.findall(r"'\$ref': '([^']+)'", str(built)):
        assert text.startswith("#/$defs/") and text.removeprefix("#/$defs/") in built["$defs"]
    for section in CONFIGS:
        for name, part in built["properties"][section].get("properties", {}).items():
            assert part.get("description"), f"{section}.{name} has no description"


def test_no_two_configs_share_a_name_in_the_schema():
    """`$defs` of all sections share one table: two classes of one name would overwrite each other."""
    known = {}
    for section in CONFIGS:
        for name, part in config_class(section).model_json_schema().get("$defs", {}).items():
            assert known.setdefault(name, part) == part, f"two different configs are called {name}"


def test_a_resolved_recipe_fits_the_schema_and_a_spoilt_one_does_not():
    resolved = plain(load_recipe(find_recipe("laptop")))
    built = schema()
    assert complaints(resolved, built) == []
    for spoil, where in [
        (lambda r: r.update(gropo={}), "gropo"),
        (lambda r: r["grpo"].update(stepz=1), "stepz"),
        (lambda r: r["grpo"].update(steps=0), "grpo.steps"),
        (lambda r: r["grpo"].update(steps="many"), "grpo.steps"),
        (lambda r: r["sft"]["optimizer"].update(kind="sgd"), "sft.optimizer.kind"),
        (lambda r: r["compute"].update(device="tpu"), "compute.device"),
    ]:
        bad = copy.deepcopy(resolved)
        spoil(bad)
        assert any(where in text for text in complaints(bad, built)), where
