"""A choice of task sets: names and tags become shares, and mistakes name what there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.base.files import write_json
from loopline.tasks.sets import members_of, select_sets, set_entry

SETS = {
    "math": {"tags": ["reasoning"], "row_tags": []},
    "code": {"tags": ["reasoning", "hard"], "row_tags": []},
    "manners": {"tags": [], "row_tags": ["must_answer", "must_refuse"]},
}


def test_nothing_chosen_is_everything(tmp_path):
    write_json(tmp_path / "sets.json", SETS)
    assert select_sets(None, tmp_path / "sets.json") == select_sets({}, SETS) == dict.fromkeys(SETS, 1.0)


def test_names_and_tags_share_out_their_weight():
    assert select_sets(["code"], SETS) == {"code": 1.0}
    assert select_sets(["tag:reasoning", "math"], SETS) == {"math": 1.0, "code": 1.0}
    assert select_sets({"tag:reasoning": 0.6, "manners": 0.4}, SETS) == {"math": 0.3, "code": 0.3, "manners": 0.4}
    assert select_sets({"tag:reasoning": 0.6, "math": 0.2, "manners": 0}, SETS) == {"math": 0.5, "code": 0.3}
    assert members_of("tag:must_refuse", SETS) == ["manners"], "a tag that only rows have finds their set"


@given(st.dictionaries(st.sampled_from([*SETS, "tag:reasoning", "tag:must_refuse"]), st.floats(0.01, 5), min_size=1))
def test_no_share_is_lost(choice):
    assert sum(select_sets(choice, SETS).values()) == pytest.approx(sum(choice.values()))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["maths"], "no task set 'maths'. Fix: did you mean 'math'"),
        (["tag:reason"], "No task set is tagged 'reason'. Fix: use one of the tags hard, must_answer"),
        ({"math": -1}, "The share of 'math' is -1"),
        ({"math": 0}, "Every chosen task set has a share of zero"),
    ],
)
def test_mistakes(choice, message):
    with pytest.raises(UserError, match=message):
        select_sets(choice, SETS)


def test_an_entry_counts_rows_and_separates_tags():
    rows = {"train": [{"tags": ["a", "b"], "answer": "1"}], "dev": [], "heldout": [{"tags": ["a"], "answer": ""}]}
    entry = set_entry("math", ["a"], rows, "x.jsonl")
    assert entry["tags"] == ["a"] and entry["row_tags"] == ["b"] and not entry["answers"]
    assert entry["counts"] == {"train": 1, "dev": 0, "heldout": 1}
