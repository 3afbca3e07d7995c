"""Conversations become examples whose loss covers what the assistant wrote and nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.chat.tokenizer import ASSISTANT, END, ROLE_IDS
from loopline.tasks.generators.config import GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import generate_tasks
from loopline.tasks.task import task_from_row
from loopline.training.conversations import choose_response, conversation_example, sets_of, task_examples
from tests.support_model import tiny_tokenizer

COUNTS = TrainCounts(arithmetic=40, word_problem=10, ordering=10, code=10, format=10, safety=10, lookup=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tasks():
    return [task_from_row(row) for row in generate_tasks(GeneratorConfig(train=COUNTS, heldout=5), 2).train]


turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "assistant", "tool"]),
        "content": st.lists(
            st.sampled_from(["hi", "7", " é漢", "<think>1+1=2</think>2", "\n", "<tool_call>{}</tool_call>", "<|end|>"]),
            max_size=4,
        ).map("".join),
    }
)


@given(messages=st.lists(turns, min_size=1, max_size=7))
def test_the_loss_covers_the_assistants_text_and_its_closing_mark(tokenizer, messages):
    """Built the other way round: each turn rendered alone, cut after its role mark."""
    expected_ids, expected = [], []
    for message in messages:
        mark, *text = tokenizer.render([message])
        assert mark == ROLE_IDS[message["role"]]
        assert (text[-1:] == [END]) == (message["role"] == "assistant")
        expected_ids += [mark, *text]
        expected += [0.0, *[float(message["role"] == "assistant")] * len(text)]
    if not any(expected):
        with pytest.raises(UserError, match=r"row 5 has no assistant turn.*Fix:"):
            conversation_example(tokenizer, messages, "row 5")
        return
    example = conversation_example(tokenizer, messages, "row 5")
    assert list(example.tokens) == expected_ids
    assert list(example.weights) == expected
    learnt = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert learnt.count(END) == sum(message["role"] == "assistant" for message in messages)
    assert not set(learnt) & set(ROLE_IDS.values())


def test_tool_results_are_read_and_calls_are_learnt(tokenizer, tasks):
    task = next(task for task in tasks if task.task_set == "lookup")
    messages = next(response["messages"] for response in task.responses if response["style"] == "tool")
    example = conversation_example(tokenizer, [*task.messages, *messages], task.id)
    learnt = tokenizer.decode([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
    read = tokenizer.decode([t for t, w in zip(example.tokens, example.weights, strict=True) if not w])
    assert learnt == "".join(m["content"] + "<|end|>" for m in messages if m["role"] == "assistant")
    assert all(m["content"] in read for m in messages if m["role"] == "tool")
    assert "<tool_call>" in learnt and "<tool_call>" not in read
    assert read.startswith("<|user|>" + task.prompt)


def test_every_family_gives_one_example_per_task_up_to_its_limit(tokenizer, tasks):
    examples = task_examples(tokenizer, tasks, {}, np.random.default_rng(0), {"safety": 3, "code": 0})
    sizes = {name: len(items) for name, items in examples.items()}
    assert sizes == {
        "arithmetic": 40, "word_problem": 10, "ordering": 10, "code": 0, "format": 10, "safety": 3, "lookup": 40,
    }  # fmt: skip
    for name, items in examples.items():
        prompts = [task.messages for task in tasks if task.task_set == name]
        for item, prompt in zip(items, prompts, strict=False):
            (example,) = item.examples
            # A response may bring its own prompt (facts before the question), which still ends in the question.
            start = tokenizer.decode(example.tokens[: list(example.tokens).index(ASSISTANT)])
            assert start.endswith(tokenizer.decode(tokenizer.render(prompt)))


def test_styles_are_drawn_by_their_weights(tasks):
    task = next(task for task in tasks if {r["style"] for r in task.responses} == {"think", "direct"})
    rng = np.random.default_rng(1)
    drawn = Counter(choose_response(task, {"think": 3.0}, rng)["style"] for _ in range(4000))
    assert drawn["think"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {choose_response(task, {"direct": 0.0}, rng)["style"] for _ in range(50)} == {"think"}
    with pytest.raises(UserError, match=f"{task.id} has a style of weight 0"):
        choose_response(task, {"think": 0.0, "direct": 0.0}, rng)


def test_the_same_generator_state_gives_the_same_examples(tokenizer, tasks):
    a, b, c = (task_examples(tokenizer, tasks, {}, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert a == b
    assert a != c


def test_task_sets_without_a_share_are_left_out(tasks):
    found = sets_of(tasks, {"code": 0.0, "arithmetic": 1.0, "lookup": 0.1})
    assert {name: len(items) for name, items in found.items()} == {"arithmetic": 40, "lookup": 40}
    assert all(task.task_set == name for name, items in found.items() for task in items)


TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "wrong draft", "weight": 0},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "good answer"},
]


def learnt(tokenizer, messages, **settings):
    example = conversation_example(tokenizer, messages, "row 1", **settings)
    return tokenizer.decode([token for token, weight in zip(example.tokens, example.weights, strict=True) if weight])


def test_only_the_turns_that_are_wanted_carry_loss(tokenizer):
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in TALK]
    assert learnt(tokenizer, TALK) == "good answer<|end|>"
    assert learnt(tokenizer, plain) == "wrong draft<|end|>good answer<|end|>"
    assert learnt(tokenizer, plain, given=2) == learnt(tokenizer, plain, learn="last") == "good answer<|end|>"
    assert learnt(tokenizer, plain, learn="all") == tokenizer.decode(tokenizer.render(plain)[1:])
    for messages, leading in ((TALK[:2], 0), (plain, 4), (TALK, 4)):
        with pytest.raises(UserError, match="row 1 has no assistant turn to learn from that is neither given nor"):
            conversation_example(tokenizer, messages, "row 1", leading)


def test_turns_that_the_rendering_does_not_separate_are_refused_where_one_of_them_is_to_be_learnt(tokenizer):
    class Joined:
        """A format whose assistant part holds the role headers too, so that two turns are one span."""

        def render_with_mask(self, messages, name, **settings):
            return list(range(6)), [False, False, True, True, True, True]

    talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "assistant")]
    assert conversation_example(Joined(), talk, "row 1").weights == [0, 0, 1, 1, 1, 1]
    with pytest.raises(UserError, match="row 1: 2 turns of the assistant are rendered as 1 spans"):
        conversation_example(Joined(), talk, "row 1", given=2)


def test_tool_schemas_reach_the_template(tokenizer):
    seen = {}

    class Watched:
        def render_with_mask(self, messages, name, **settings):
            seen.update(settings)
            return [1, 2], [False, True]

    schema = {"type": "function", "function": {"name": "get_weather"}}
    conversation_example(Watched(), [{"role": "assistant", "content": "x"}], "row 1", tools=[schema])
    assert seen == {"tools": [schema], "trained_from": 0, "allow": ()}


def test_a_task_without_a_written_answer_is_named(tasks):
    bare = tasks[0].model_copy(update={"responses": ()})
    with pytest.raises(UserError, match=f"{bare.id} of {bare.task_set} has no written answer.*Fix: leave"):
        choose_response(bare, {}, np.random.default_rng(0))
