"""Loop A's data: only consented, finished, clean, labelled conversations become rows."""

import json

import pytest

from loopline.corpus.config import TrafficDataConfig
from loopline.corpus.traffic import collect, judge
from loopline.text.index import TextIndex

HELD_OUT = "Jon has 5 apples. Jon buys 17 more and gives 13 to Ann. How many apples does Jon have?"
INDEX = TextIndex([("h", HELD_OUT)])
CONFIG = TrafficDataConfig()


def request(name, question="What is 2+2?", response="4", feedback=(("thumbs_up", True),), **changes):
    return {
        "id": name,
        "conversation": name,
        "messages": [{"role": "user", "content": question}],
        "response": response,
        "finish": "stop",
        "consent": True,
        "feedback": [{"name": n, "value": v} for n, v in feedback],
        **changes,
    }


def test_each_fate_of_a_request():
    requests = [
        request("good"),
        request("corrected", "What is 3+3?", "7", [("thumbs_down", True), ("correction", "6")]),
        request("refused", "My secret words", consent=False),
        request("cut", "Tell me more", finish="length"),
        request("again"),
        request("held", f"{HELD_OUT.upper()} Thanks!", "9"),
        request("bad", "What is 4+4?", "9", [("thumbs_down", True)]),
        request("silent", "What is 5+5?", "10", []),
        request("private", "I am jane@mail.example.org, say hi", "Hi jane@mail.example.org"),
    ]
    sft, preferences, funnel = collect(requests, INDEX, CONFIG)
    assert [row["id"] for row in sft] == ["good", "corrected", "private"]
    assert sft[1]["messages"] == [
        {"role": "user", "content": "What is 3+3?"},
        {"role": "assistant", "content": "6"},
    ]
    assert sft[2]["messages"][1]["content"] == "Hi [EMAIL]"
    assert preferences == [
        {
            "id": "corrected",
            "input": {"messages": [{"role": "user", "content": "What is 3+3?"}]},
            "preferred_output": [{"role": "assistant", "content": "6"}],
            "non_preferred_output": [{"role": "assistant", "content": "7"}],
        }
    ]
    reasons = {row["step"]: row["reasons"] for row in funnel}
    assert reasons == {
        "consent": {"no consent": 1},
        "finish": {"answer cut off": 1},
        "scrub": {"email": 2},
        "duplicates": {"same conversation": 1},
        "decontaminate": {"holds a held-out task": 1},
        "label": {"bad without a correction": 1, "unlabelled": 1, "label: good": 2, "label: corrected": 1},
    }
    written = json.dumps([sft, preferences, funnel])
    assert "jane" not in written
    assert "My secret words" not in written


@pytest.mark.parametrize(
    ("feedback", "label"),
    [
        ([("thumbs_up", True)], "good"),
        ([("thumbs_up", 1)], "good"),
        ([("thumbs_up", None)], "good"),
        ([("thumbs_up", False)], "bad without a correction"),
        ([("thumbs_up", 0)], "bad without a correction"),
        ([("thumbs_down", "no")], "unlabelled"),
        ([("thumbs_up", True), ("regenerated", True)], "contradicted"),
        ([("edited", "5")], "corrected"),
        ([("edited", "5"), ("thumbs_up", True)], "corrected"),
        ([("edited", " 4 "), ("thumbs_up", True)], "good"),
        ([("edited", "")], "unlabelled"),
        ([("stars", 5)], "unlabelled"),
    ],
)
def test_labels(feedback, label):
    assert judge(request("x", feedback=feedback), CONFIG)[0] == label


def test_a_response_may_be_a_message_and_long_conversations_are_left_out():
    requests = [
        request("a", response={"role": "assistant", "content": "four"}),
        request("b", "x" * 30_000),
        request("c", response=""),
    ]
    sft, _, funnel = collect(requests, INDEX, CONFIG)
    assert [row["messages"][-1] for row in sft] == [{"role": "assistant", "content": "four"}]
    assert funnel[1]["reasons"] == {"too long": 1, "empty": 1}


def test_the_latest_correction_counts_and_consent_must_be_given_outright():
    assert judge(request("x", feedback=[("edited", "5"), ("edited", "6")]), CONFIG)[1] == "6"
    sft, _, _ = collect([request("x", consent="yes"), request("y", consent=None)], INDEX, CONFIG)
    assert sft == []


def test_what_a_user_corrects_is_scrubbed_like_everything_else():
    feedback = [("thumbs_down", True), ("correction", "Write to jane@mail.example.org or call 555-867-5309")]
    sft, preferences, funnel = collect([request("x", "Who do I ask?", "Nobody", feedback)], INDEX, CONFIG)
    clean = {"role": "assistant", "content": "Write to [EMAIL] or call [PHONE]"}
    assert sft[0]["messages"][-1] == clean and preferences[0]["preferred_output"] == [clean]
    assert "jane" not in json.dumps([sft, preferences, funnel]) and "867" not in json.dumps([sft, preferences, funnel])
    assert {row["step"]: row["reasons"] for row in funnel}["scrub"] == {"email": 1, "phone": 1}
