"""What rows become in every layout, and what is said about those that cannot be used."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.tasks.config import DataConfig
from loopline.tasks.files import Table
from loopline.tasks.layouts import normalize
from loopline.tasks.messages import split_transcript


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def table(*rows):
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table("mine.jsonl", "jsonl", columns, list(rows))


def read(purpose, *rows, **settings):
    return normalize(table(*rows), purpose, DataConfig(**settings))


def only(purpose, *rows, **settings):
    (row,) = read(purpose, *rows, **settings).rows
    return row


@pytest.mark.parametrize(
    ("row", "given"),
    [
        ({"messages": [user("2+2?"), says("4")]}, 0),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, 0),
        ({"prompt": "2+2?", "completion": "4"}, 1),
        ({"prompt": [user("2+2?")], "completion": [says("4")]}, 1),
        ({"prompt": "2+2?", "completion": says("4")}, 1),
        ({"prompt": "2+2?", "completion": 4}, 1),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, says("4"), user("thanks")]}, 0),
    ],
)
def test_conversations_of_every_layout(row, given):
    assert only("conversations", row) == {"id": "row-1", "messages": [user("2+2?"), says("4")], "given": given}


def test_prompts_go_into_the_template_and_below_the_system_turn():
    row = only(
        "conversations", {"q": "2+2?", "a": "4"}, columns={"prompt": "q", "completion": "a"}, template="Q: {prompt}!",
        system="Add.",
    )  # fmt: skip
    assert row["messages"] == [{"role": "system", "content": "Add."}, user("Q: 2+2?!"), says("4")]
    assert row["given"] == 2


HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2+2?\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("hi"), says("hello"), user("2+2?")], "chosen": "4", "rejected": "5"},
        {"chosen": HH + "4", "rejected": HH + "5"},
        {"chosen": [user("hi"), says("hello"), user("2+2?"), says("4")],
         "rejected": [user("hi"), says("hello"), user("2+2?"), says("5")]},
        {"prompt": [user("hi"), says("hello"), user("2+2?")], "chosen": [says("4")], "rejected": [says("5")]},
        {"prompt": [user("hi"), says("hello"), user("2+2?")],
         "chosen": [user("hi"), says("hello"), user("2+2?"), says("4")],
         "rejected": [user("hi"), says("hello"), user("2+2?"), says("5")]},
        {"input": {"messages": [user("hi"), says("hello"), user("2+2?")]}, "preferred_output": [says("4")],
         "non_preferred_output": [says("5")]},
    ],
)  # fmt: skip
def test_pairs_of_every_layout(row):
    assert only("pairs", row) == {
        "id": "row-1",
        "prompt": [user("hi"), says("hello"), user("2+2?")],
        "chosen": [says("4")],
        "rejected": [says("5")],
    }


def test_pairs_that_teach_nothing_are_left_out_and_counted():
    good = {"chosen": HH + "4", "rejected": HH + "5"}
    equal = {"chosen": HH + "4", "rejected": HH + "4"}
    apart = {"chosen": HH + "4", "rejected": "\n\nHuman: other\n\nAssistant: 5"}
    found = read("pairs", good, equal, apart)
    assert [row["id"] for row in found.rows] == ["row-1"]
    assert found.counts == {"both sides equal": 1, "prompts differ": 1}
    with pytest.raises(UserError, match=r"no row is left \(1 both sides equal\)"):
        read("pairs", equal)
    with pytest.raises(UserError, match=r"row 1: 'chosen' is text without a prompt"):
        read("pairs", {"chosen": "4", "rejected": "5"})


plain_turns = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=30).map(str.strip)
plain_turns = plain_turns.filter(lambda said: said and "Human:" not in said and "Assistant:" not in said)


@given(turns=st.lists(plain_turns, min_size=2, max_size=7))
def test_a_transcript_gives_back_its_turns(turns):
    names = [("Human", "user"), ("Assistant", "assistant")]
    written = "".join(f"\n\n{names[place % 2][0]}: {said}" for place, said in enumerate(turns))
    expected = [{"role": names[place % 2][1], "content": said} for place, said in enumerate(turns)]
    assert split_transcript(written) == expected


def test_labels_of_every_kind_and_pairs_as_labels():
    rows = [{"prompt": "a?", "completion": "b", "label": label} for label in (True, "false", 0.5, "no", "1")]
    assert [row["label"] for row in read("labels", *rows).rows] == [1.0, 0.0, 0.5, 0.0, 1.0]
    with pytest.raises(UserError, match=r"mine\.jsonl, row 1: the label is 'perhaps'.*Fix: "):
        read("labels", {"prompt": "a?", "completion": "b", "label": "perhaps"})
    split = read("labels", {"prompt": "a?", "chosen": "b", "rejected": "c", "id": "x"}).rows
    assert [(row["id"], row["completion"], row["label"]) for row in split] == [
        ("x/chosen", [says("b")], 1.0),
        ("x/rejected", [says("c")], 0.0),
    ]


def test_prompts_keep_every_column_for_graders():
    row = only("prompts", {"question": "2+2?", "answer": "2+2=4\n#### 4", "level": 3, "none": None, "id": 7},
               columns={"prompt": "question"})  # fmt: skip
    assert row == {
        "id": "7",
        "messages": [user("2+2?")],
        "answer": "2+2=4\n#### 4",
        "item": {"question": "2+2?", "answer": "2+2=4\n#### 4", "level": 3, "id": 7},
    }
    row = only("prompts", {"messages": [user("2+2?"), says("4")]})
    assert row["messages"] == [user("2+2?")] and row["answer"] == "4"
    assert only("prompts", {"prompt": "a?", "answer": 4})["answer"] == "4"
    assert only("prompts", {"prompt": "a?"})["answer"] == ""


@pytest.mark.parametrize(
    ("purpose", "columns", "proposal"),
    [
        ("conversations", ("question", "answer"), "--columns prompt=question,completion=answer"),
        ("conversations", ("Instruction", "Output"), "--columns prompt=Instruction,completion=Output"),
        ("pairs", ("question", "response_j", "response_k"), "prompt=question,chosen=response_j,rejected=response_k"),
        ("pairs", ("prompt", "accepted", "rejected"), "--columns chosen=accepted"),
        ("prompts", ("problem", "solution"), "--columns prompt=problem"),
        ("labels", ("prompt", "response", "rating"), "--columns completion=response,label=rating"),
        ("conversations", ("dialogue", "topic"), "--columns messages=dialogue"),
        ("conversations", ("x", "y"), "--columns prompt=<your column>,completion=<your column>"),
    ],
)
def test_wrong_columns_are_listed_with_what_is_wanted_and_a_proposal(purpose, columns, proposal):
    with pytest.raises(UserError) as caught:
        read(purpose, dict.fromkeys(columns, "x"))
    said = str(caught.value)
    assert f"mine.jsonl has the columns {', '.join(columns)}, but {purpose} are read from " in said
    assert proposal in said
    if "<" not in proposal:
        named = dict(part.split("=") for part in caught.value.fix.rpartition(" ")[2].split(","))
        config = DataConfig(columns=named)
        values = dict.fromkeys(columns, "yes") | ({"rating": 1} if "rating" in columns else {})
        values |= {"dialogue": [user("a"), says("b")]} if "dialogue" in columns else {}
        values |= {"response_k": "no"} if "response_k" in columns else {}
        values |= {"rejected": "no"} if "rejected" in columns else {}
        assert normalize(table(values), purpose, config).rows


def test_columns_that_do_not_exist_are_named():
    row = {"question": "a?", "answer": "b"}
    with pytest.raises(UserError, match=r"--columns prompt=qestion: .* no column 'qestion'.*did you mean 'question'\?"):
        read("conversations", row, columns={"prompt": "qestion"})
    with pytest.raises(UserError, match=r"no column 'promt' to fill.*Fix: use completion, conversations, given, id, "):
        read("conversations", row, columns={"promt": "question"})


def test_an_empty_turn_that_was_given_is_no_empty_completion():
    said = ("a?", "", "b?", "c")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said, strict=True)]
    found = read("conversations", {"messages": messages, "given": 3})
    assert found.rows[0]["messages"] == messages and found.rows[0]["given"] == 3
    with pytest.raises(UserError, match=r"1 of 1 rows have an empty completion"):
        read("conversations", {"messages": messages, "given": 0})


def test_empty_completions_are_refused_with_their_rows_or_dropped():
    rows = [{"prompt": "a?", "completion": said} for said in ("b", "", "c", " \n")]
    with pytest.raises(UserError, match=r"2 of 4 rows have an empty completion \(row 2, 4\).*read\.empty=drop"):
        read("conversations", *rows)
    found = read("conversations", *rows, empty="drop")
    assert [row["id"] for row in found.rows] == ["row-1", "row-3"] and found.counts == {"empty completion": 2}
    with pytest.raises(UserError, match=r"7 of 7 rows .*\(row 1, 2, 3, 4, 5, \.\.\.\)"):
        read("conversations", *[rows[1]] * 7)
    with pytest.raises(UserError, match=r"row 2: has no 'completion'"):
        read("conversations", rows[0], {"prompt": "a?"})


def test_ids_must_be_unique():
    rows = [{"id": name, "prompt": "a?", "completion": "b"} for name in ("x", "y", "x")]
    with pytest.raises(UserError, match=r"mine\.jsonl, row 3: the id 'x' is that of row 1.*Fix: "):
        read("conversations", *rows)
    assert [row["id"] for row in read("conversations", *rows, limit=2).rows] == ["x", "y"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [user("a"), {"role": "robot", "content": "b"}]},
            r"row 1, messages: .* has the role 'robot'",
        ),
        ({"messages": [user("a"), {"role": "assistant", "content": 3}]}, r"the content of a message is 3"),
        ({"messages": ["a"]}, r"holds 'a' instead of a message"),
        ({"messages": []}, r"row 1, messages holds \[\]"),
        ({"prompt": "a", "completion": [user("b")]}, r"row 1, completion ends with a turn of the user"),
        ({"messages": [user("a"), {"role": "assistant", "content": [{"type": "image_url"}]}]}, r"is not text"),
    ],
)
def test_rows_that_are_no_conversation_are_named(row, message):
    with pytest.raises(UserError, match=message):
        read("conversations", row)


def test_a_template_must_show_the_prompt():
    with pytest.raises(ValueError, match="template must hold"):
        DataConfig(template="no place")


def test_messages_written_as_json_text_are_read_and_other_text_is_refused():
    text = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'
    assert only("conversations", {"messages": text})["messages"] == [user("hi"), says("hello")]
    with pytest.raises(UserError, match="row 1: 'messages' is text, no list of messages"):
        read("conversations", {"messages": "hi, hello"})
    # A completion that happens to be JSON stays the text it is.
    for completion in ('{"a": 1}', "[1, 2]", '[{"a": 1}]'):
        row = only("conversations", {"prompt": "Return an object", "completion": completion})
        assert row["messages"][-1] == says(completion)


def test_what_stands_beside_the_prompt_reaches_it():
    alpaca = {"instruction": "Translate to French.", "input": "The cat sleeps.", "output": "Le chat dort."}
    with pytest.raises(UserError, match="name them with --columns prompt=instruction,completion=output,input=input"):
        read("conversations", alpaca)
    columns = {"prompt": "instruction", "completion": "output"}
    row = only("conversations", alpaca, columns=columns, template="Q: {prompt}")
    assert row["messages"] == [user("Q: Translate to French.\n\nThe cat sleeps."), says("Le chat dort.")]
    assert only("conversations", {**alpaca, "input": ""}, columns=columns)["messages"][0] == user(alpaca["instruction"])
    row = only("conversations", {"prompt": "a", "completion": "b", "system": "Be kind."}, system="Be short.")
    assert row["messages"][0] == {"role": "system", "content": "Be kind."} and row["given"] == 2


def test_a_column_of_the_conversation_that_nothing_reads_is_refused_unless_it_is_left_out_by_name():
    rows = [{"prompt": "a", "completion": "b", "context": "c", "score": 3}]
    with pytest.raises(
        UserError, match=r"column 'context' looks like .*--columns input=context.*read\.ignore=\[context\]"
    ):
        read("conversations", *rows)
    found = read("conversations", *rows, ignore=("context",))
    assert found.rows[0]["messages"] == [user("a"), says("b")] and set(found.unused) == {"context", "score"}
    mapped = read("conversations", *rows, columns={"input": "context"})
    assert mapped.rows[0]["messages"][0] == user("a\n\nc") and mapped.unused == ("score",)
    # An empty one carries nothing.
    assert read("conversations", {"prompt": "a", "completion": "b", "history": []}).rows


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_are_kept_in_one_form(as_text):
    function = {"name": "get_weather", "parameters": {"type": "object"}}
    for tools in ([function], [{"type": "function", "function": function}]):
        row = {"messages": [user("Oslo?"), says("4 C")], "tools": json.dumps(tools) if as_text else tools}
        assert only("conversations", row)["tools"] == [{"type": "function", "function": function}]
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [function]}
    assert all("tools" in row for row in [only("pairs", pair), *read("labels", pair).rows])
    with pytest.raises(UserError, match="row 1: the tools are no list of schemas"):
        read("conversations", {"messages": [user("a"), says("b")], "tools": ["get_weather"]})


def test_weights_of_messages_are_kept_and_checked():
    draft = {**says("wrong"), "weight": 0}
    assert only("conversations", {"messages": [user("a"), draft, user("b"), says("c")]})["messages"][1] == draft
    with pytest.raises(UserError, match=r"a turn of the assistant has the weight 0\.5"):
        read("conversations", {"messages": [user("a"), {**says("b"), "weight": 0.5}]})
    with pytest.raises(UserError, match=r"no row is left \(1 nothing to learn\)"):
        read("conversations", {"messages": [user("a"), draft]})


def test_a_prompt_that_the_sides_repeat_is_there_once():
    def pair(prompt, head):
        return {"prompt": prompt, "chosen": [user(head), says("good")], "rejected": [user(head), says("bad")]}

    for prompt, head in (("p1", "p1"), ("p1 ", "p1"), ("p1", "\np1")):
        row = only("pairs", pair(prompt, head))
        assert (row["prompt"], row["chosen"], row["rejected"]) == ([user(prompt)], [says("good")], [says("bad")])
    with pytest.raises(UserError, match="a side begins with a turn of the user that is not the prompt"):
        read("pairs", pair("p1", "p2"))


def test_a_row_that_was_written_is_read_again_as_it_is():
    row = {"id": "x", "messages": [user("a"), says("b"), user("c"), says("d")], "given": 3}
    assert only("conversations", row) == row
    pair = {
        "id": "y", "input": {"messages": [user("a")]}, "preferred_output": [says("b")],
        "non_preferred_output": [says("c")], "principle": "kind",
    }  # fmt: skip
    assert only("pairs", pair) == {"id": "y", "prompt": [user("a")], "chosen": [says("b")], "rejected": [says("c")]}
