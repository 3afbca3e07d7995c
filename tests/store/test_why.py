"""Identity by what something is made from, and the reasons drawn from it."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.files import to_json
from loopline.store.why import BuildKey, Change, compare, explain

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0.1, 0.9) | st.text("abc", max_size=3)
KEYS = st.sampled_from(["a", "b", "c", "rate", "steps"])
CONFIGS = st.recursive(
    st.dictionaries(KEYS, LEAVES, max_size=4),
    lambda inner: st.dictionaries(KEYS, LEAVES | inner | st.lists(LEAVES, max_size=3), max_size=4),
    max_leaves=8,
)
DIGESTS = st.text("0123456789abcdef", min_size=8, max_size=8)
INPUTS = st.dictionaries(
    st.sampled_from(["base", "tasks", "data"]),
    st.fixed_dictionaries({"stage": st.sampled_from(["x", "y"]), "digest": DIGESTS}),
)
KEYS_OF_NODES = st.builds(
    BuildKey,
    stage=st.sampled_from(["sft", "grpo"]),
    kind=st.sampled_from(["sft", "grpo"]),
    version=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
    config=CONFIGS,
    inputs=INPUTS,
)


def parts(key):
    """What counts, in a form of its own: nothing of `BuildKey.identity` is used."""
    digests = {role: given["digest"] for role, given in key.inputs.items()}
    return to_json([key.kind, key.version, key.seed, key.config, digests])


def shuffled(value):
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=150)
@given(first=KEYS_OF_NODES, second=KEYS_OF_NODES)
def test_two_identities_are_equal_exactly_when_everything_that_counts_is(first, second):
    assert (first.identity == second.identity) == (parts(first) == parts(second))


@given(key=KEYS_OF_NODES)
def test_the_same_key_has_the_same_identity_in_any_order_and_from_its_manifest(key):
    again = BuildKey(key.stage, key.kind, key.version, key.seed, shuffled(key.config), shuffled(key.inputs))
    assert again.identity == key.identity
    manifest = json.loads(to_json({**vars(key), "stage_kind": key.kind, "digest": "d", "seconds": 3.5}))
    assert BuildKey.of_manifest(manifest).identity == key.identity


@given(key=KEYS_OF_NODES, data=st.data())
def test_any_changed_field_is_another_identity_and_is_named(key, data):
    what = data.draw(st.sampled_from(["seed", "version", "config", "inputs"]))
    fields = copy.deepcopy(vars(key))
    if what in ("seed", "version"):
        fields[what] += 1
    elif what == "config":
        fields["config"]["added"] = {"deep": 1}
    else:
        fields["inputs"]["teacher"] = {"stage": "align", "digest": "d" * 8}
    changed = BuildKey(**fields)
    assert changed.identity != key.identity
    names = [change.field for change in compare(key, changed)]
    expected = {
        "seed": "seed",
        "version": f"{key.stage}'s code version",
        "config": f"{key.stage}.added.deep",
        "inputs": "input align",
    }
    assert expected[what] in names
    # An empty config and one with a key also differ in "is empty", nothing else may.
    assert set(names) <= {expected[what], key.stage}


@given(key=KEYS_OF_NODES)
def test_inputs_count_by_content_and_not_by_what_made_them(key):
    moved = {role: {"stage": "elsewhere", "digest": given["digest"]} for role, given in key.inputs.items()}
    other = BuildKey(key.stage, key.kind, key.version, key.seed, key.config, moved)
    assert other.identity == key.identity
    assert compare(key, other) == []
    assert BuildKey("renamed", key.kind, key.version, key.seed, key.config, key.inputs).identity == key.identity


BEFORE = BuildKey(
    "grpo", "grpo", 1, 7, {"steps": 50, "reward": {"length": 0.1}}, {"policy": {"stage": "sft", "digest": "a"}}
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"config": {"steps": 60, "reward": {"length": 0.1}}}, "grpo.steps changed from 50 to 60"),
        ({"config": {"steps": 50, "reward": {"length": 0.2}}}, "grpo.reward.length changed from 0.1 to 0.2"),
        ({"config": {"steps": 50, "reward": {}}}, "grpo.reward"),
        ({"seed": 8}, "seed changed from 7 to 8"),
        ({"version": 2}, "grpo's code version changed from 1 to 2"),
        ({"inputs": {"policy": {"stage": "sft", "digest": "b"}}}, "input sft changed its content"),
    ],
)
def test_a_reason_names_the_setting_seed_version_or_input(change, sentence):
    assert sentence in explain(compare(BEFORE, BuildKey(**{**vars(BEFORE), **change})))


def test_all_reasons_are_given():
    after = BuildKey("grpo", "grpo", 2, 8, {**BEFORE.config, "steps": 60}, {"policy": {"stage": "sft", "digest": "b"}})
    sentence = explain(compare(BEFORE, after))
    assert [part.split(" changed")[0] for part in sentence.split("; ")] == [
        "grpo's code version",
        "seed",
        "grpo.steps",
        "input sft",
    ]


def test_long_values_do_not_flood_the_sentence():
    assert len(str(Change("data.sources", list(range(1000)), None))) < 160


def test_no_earlier_artifact_and_no_difference_are_different_reasons():
    assert explain(None) == "never ran before"
    assert explain([]) == "an earlier attempt did not finish"
