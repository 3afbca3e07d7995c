"""Decontamination: planted items are found whatever their case, spacing and surroundings; clean text is left alone."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.corpus.config import DecontaminationConfig, PythonConfig
from loopline.corpus.decontaminate import heldout_index, step, task_items
from loopline.corpus.document import make_document
from loopline.corpus.python_source import read_python
from loopline.text.index import TextIndex
from loopline.text.words import normal_form

CONFIG = DecontaminationConfig()
WORDS = [f"word{n}" for n in range(400)]
LONG = "Jon has 5 apples. Jon buys 17 more and gives 13 to Ann. How many apples does Jon have?"
MEDIUM = "What does the green ring that Ida found weigh?"
SUM = "28-20+22+4=?"
CODE = "def f(x): return x[6:][4:]"


def items(*texts):
    return [(f"item{n}", text) for n, text in enumerate(texts)]


@settings(max_examples=50)
@given(
    st.integers(0, 10**6),
    st.integers(13, 60),
    st.sampled_from([str, str.upper, str.title]),
    st.sampled_from([" ", ", ", "\n"]),
)
def test_any_long_item_is_found_recased_and_repunctuated(seed, length, case, joiner):
    rng = np.random.default_rng(seed)
    item = list(rng.choice(WORDS, length))
    text = " ".join(rng.choice(WORDS, 80)) + ". " + case(joiner.join(item)) + "! " + " ".join(rng.choice(WORDS, 80))
    matches = TextIndex(items(" ".join(item))).find(["nothing here", text])
    assert {match.text for match in matches} == {1}
    assert min(m.start for m in matches) <= text.index(case(item[0])) + len(text) // 2
    assert any(m.whole for m in matches)
    for match in matches:
        piece = text.encode()[match.start : match.end].decode()
        assert normal_form(piece).replace(" , ", " ") in normal_form(text).replace(" , ", " ")


@pytest.mark.parametrize("item", [LONG, MEDIUM, SUM, CODE])
@pytest.mark.parametrize("change", [str, str.upper, lambda text: text.replace(" ", "   ").rstrip("?=")])
def test_items_of_every_length_are_found(item, change):
    index = TextIndex(items(LONG, MEDIUM, SUM, CODE))
    text = f"Some text before. {change(item)} And after it."
    assert items(LONG, MEDIUM, SUM, CODE)[[LONG, MEDIUM, SUM, CODE].index(item)][0] in {
        m.item for m in index.find([text])
    }


@pytest.mark.parametrize(
    "text",
    [
        "28-20+22-4=26",  # another sign
        "128-20+22+4=134",  # another number
        "7+28-20+22+4=41",  # a longer sum
        "28 20 22 4",
        "What does the green ring weigh?",
        "def f(x): return x[6:][5:]",
        "Jon has 5 apples and Jon buys 17 more",
    ],
)
def test_what_only_resembles_an_item_is_not_one(text):
    assert TextIndex(items(LONG, MEDIUM, SUM, CODE)).find([text]) == []


def test_items_do_not_reach_across_documents():
    half = len(LONG) // 2
    assert TextIndex(items(LONG)).find([LONG[:half], LONG[half:]]) == []


def test_real_text_is_not_flagged():
    texts = [
        d.text for d in read_python(PythonConfig(code_megabytes=0.5, docstring_megabytes=0.5, licence_megabytes=0))
    ]
    assert TextIndex(items(LONG, MEDIUM, SUM, CODE)).find(texts) == []


def test_natural_text_loses_the_surroundings_and_generated_text_the_block():
    filler = "The weather was mild and nobody was in a hurry at all. " * 40
    documents = [
        make_document("s", "a.txt", f"{filler}é{LONG}é{filler}"),
        make_document("s", "b.txt", f"short {LONG} short"),
        make_document("s", "c.txt", filler),
        make_document("synthetic/word_problem", "d", f"{filler[:400]}\n{LONG} 9.\n{filler[:300]}"),
        make_document(
            "synthetic/code", "e", f"# Take x.\n{CODE}\n\ndef f(x):\n    return x\n\ndef f(x):\n    return x+1"
        ),
        make_document("synthetic/arithmetic", "f", "1+2=3\n28-20+22+4=34"),
    ]
    change = step(documents, TextIndex(items(LONG, SUM, CODE)), CONFIG)
    assert change.removed == {1: "mostly held-out tasks", 5: "mostly held-out tasks"}
    assert set(change.edited) == {0, 3, 4}
    assert "Jon" not in change.edited[0].text
    assert len(change.edited[0].text) > len(documents[0].text) - 700
    assert change.edited[3].text == f"{filler[:400]}\n{filler[:300]}"
    assert change.edited[4].text == "def f(x):\n    return x\n\ndef f(x):\n    return x+1"
    again = step(list(change.edited.values()), TextIndex(items(LONG, SUM, CODE)), CONFIG)
    assert not again.edited
    assert not again.removed


def test_generated_text_may_share_templates_with_an_item():
    other = LONG.replace("Jon has 5", "Ida has 5")
    documents = [make_document("synthetic/w", "a", other), make_document("s", "a.txt", other + " " + "x y " * 500)]
    assert set(step(documents, TextIndex(items(LONG)), CONFIG).edited) == {1}


def test_overlap_is_the_share_of_ngrams():
    text = " ".join(WORDS[:100])
    index = TextIndex(items(text), whole=False)
    half = " ".join(WORDS[:50] + WORDS[200:250])
    assert index.overlap([text, half, "short"]).tolist() == [1.0, pytest.approx(38 / 88), 0.0]


def test_a_tasks_artifact_gives_prompts_programs_facts_and_documents(tmp_path):
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": LONG}], "answer": "9", "grader": "final_answer"},
        {"id": "b", "messages": [{"role": "user", "content": "Do it."}], "answer": CODE, "grader": "g", "tests": []},
        {"id": "c", "messages": [], "facts": ["The red cup weighs 4 kilos."], "answer": "4", "grader": "final_answer"},
    ]
    assert [text for row in rows for _, text in task_items(row)] == [
        LONG,
        "Do it.",
        CODE,
        "The red cup weighs 4 kilos.",
    ]
    (tmp_path / "heldout.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "documents.jsonl").write_text(
        json.dumps({"id": "d", "part": "heldout", "text": "The blue pot costs 9 coins."})
        + "\n"
        + json.dumps({"id": "e", "part": "train", "text": "The grey hat costs 8 coins."})
    )
    index = heldout_index(tmp_path, CONFIG)
    found = index.find(["the blue pot costs 9 coins", "the grey hat costs 8 coins", "the red cup weighs 4 kilos", CODE])
    assert {match.item for match in found} == {"b", "c", "d"}
    (tmp_path / "heldout.jsonl").write_text("")
    (tmp_path / "documents.jsonl").unlink()
    with pytest.raises(UserError, match="holds no held-out tasks"):
        heldout_index(tmp_path, CONFIG)
