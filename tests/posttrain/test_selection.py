"""Every answer is kept or counted; what is kept obeys every rule."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from loopline.posttrain.reject_config import RejectConfig
from loopline.posttrain.selection import REASONS, Answer, Group, balance, histogram, quarter, rollout_groups, select
from loopline.text.overlap import HeldoutText
from loopline.text.words import jaccard


def output(text, score=1.0, finish="stop", tokens=None, length=0, rank=None):
    ids = tuple(range(length))
    return Answer(text, score, finish, tokens or len(text.split()) + 1, ids[:1], ids[1:], rank)


def group(task, *answers, prompt=None):
    messages = ({"role": "user", "content": prompt or f"question {task}"},)
    return Group(task, "prompts", messages, answers)


def chosen(groups, heldout=None, position_limit=None, **changes):
    config = RejectConfig(bucket_share=1.0, **changes)
    found = select(groups, config, heldout, np.random.default_rng(0), position_limit)
    assert sum(found.rejected.values()) + len(found.kept) == sum(len(item.answers) for item in groups)
    rejected = {why: count for why, count in found.rejected.items() if count}
    return [one.answer.text for one in found.kept], rejected


def test_the_rules_one_by_one():
    groups = [
        group("a", output("good"), output("bad", 0.0), output("cut", 1.0, "length"), output("?", None)),
        group("b", output("a longer one here"), output("short"), output("short ")),
    ]
    assert chosen(groups) == (
        ["good", "short"],
        {"could not be graded": 1, "cut off": 1, "wrong": 1, "repeated": 1, "not the best": 1},
    )
    assert chosen(groups, per_prompt=2)[0] == ["good", "short", "a longer one here"]
    assert chosen(groups, max_tokens=1)[1]["too long"] == 4
    assert chosen([group("a", output("good", length=21))], sequence_length=20)[1] == {"too long": 1}
    assert chosen([group("a", output("good", length=21))], position_limit=20)[1] == {"too long": 1}
    assert chosen([group("a", output("good", length=20))], position_limit=20)[0] == ["good"]


def test_the_best_of_n_by_grader_or_reward_model():
    graded = group("a", output("meh", 0.6), output("much better it is", 0.9), output("best but cut", 1.0, "length"))
    assert chosen([graded], threshold=0.5)[0] == ["meh"]
    assert chosen([graded], threshold=0.5, select="best")[0] == ["much better it is"]
    ranked = group("a", output("meh", rank=-1.5), output("liked by the model", rank=2.0), output("so so", rank=0.1))
    assert chosen([ranked], select="best")[0] == ["liked by the model"]
    assert chosen([ranked], select="best", per_prompt=2)[0] == ["liked by the model", "so so"]


def test_near_duplicates_of_a_kept_answer_go():
    text = "first add two and two then double the sum and say eight"
    same = text.replace("say", "tell")
    other = "eight is four times two"
    groups = [group("a", output(text), output(same), output(other))]
    assert chosen(groups, per_prompt=3, similarity=0.5) == ([other, text], {"near duplicate": 1})
    assert set(chosen(groups, per_prompt=3, similarity=1.0)[0]) == {text, same, other}


def test_a_prompt_that_stands_in_the_file_twice_is_one():
    groups = [group(name, output("4"), prompt="2+2?") for name in "ab"]
    assert chosen(groups) == (["4"], {"repeated": 1})


def test_prompts_too_easy_or_too_hard_are_left_out():
    def rate(name, right, wrong):
        return group(name, *[output(f"{name} {n} right") for n in range(right)], *[output("no", 0.0)] * wrong)

    groups = [rate("easy", 4, 0), rate("even", 2, 2), rate("hard", 1, 7)]
    texts, rejected = chosen(groups, min_pass_rate=0.25, max_pass_rate=0.9)
    assert texts == ["even 0 right"]
    assert rejected["prompt too easy"] == 4 and rejected["prompt too hard"] == 1
    with pytest.raises(ValidationError, match="min_pass_rate is above max_pass_rate"):
        RejectConfig(min_pass_rate=0.5, max_pass_rate=0.25)


def test_answers_that_hold_held_out_text_go():
    secret = "Natalia sold clips to forty eight of her friends in April and then half as many in May"
    groups = [group("a", output("As I recall: " + secret.lower()), output("something of its own"))]
    assert chosen(groups, HeldoutText([secret])) == (["something of its own"], {"held-out text": 1})


outputs_strategy = st.builds(
    output,
    text=st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=6).map(" ".join),
    score=st.sampled_from([None, 0.0, 0.5, 1.0]),
    finish=st.sampled_from(["stop", "stop", "length"]),
    tokens=st.integers(1, 12),
)
groups_strategy = st.lists(
    st.builds(
        lambda task, outputs: group(f"t{task}", *outputs),
        st.integers(0, 4),
        st.lists(outputs_strategy, min_size=1, max_size=6),
    ),
    max_size=8,
)


@settings(max_examples=150)
@given(
    groups=groups_strategy,
    per_prompt=st.integers(1, 3),
    overlap=st.sampled_from([0.3, 0.8, 1.0]),
    threshold=st.sampled_from([0.5, 1.0]),
    best=st.booleans(),
    share=st.sampled_from([0.4, 0.7, 1.0]),
)
def test_every_answer_is_kept_or_accounted_for_and_keeps_the_rules(groups, per_prompt, overlap, threshold, best, share):
    config = RejectConfig(
        per_prompt=per_prompt, similarity=overlap, threshold=threshold, select="best" if best else "shortest",
        max_tokens=9, bucket_share=share,
    )  # fmt: skip
    found = select(groups, config, None, np.random.default_rng(1))
    again = select(groups, config, None, np.random.default_rng(1))
    assert found == again
    assert tuple(found.rejected) == REASONS
    assert sum(found.rejected.values()) + len(found.kept) == sum(len(item.answers) for item in groups)
    rows = [one.to_row() for one in found.kept]
    assert all(row["given"] == 1 and len(row["messages"]) == 2 for row in rows)
    texts = [(row["messages"][0]["content"], row["messages"][-1]["content"]) for row in rows]
    assert len(set(texts)) == len(texts)
    for row in rows:
        assert row["score"] >= threshold and row["tokens"] <= 9 and 0 < row["pass_rate"] <= 1
    if len({item.task for item in groups}) == len(groups):
        assert max(Counter(row["task"] for row in rows).values(), default=0) <= per_prompt
        for row in rows:
            for other in rows:
                if row is not other and row["task"] == other["task"] and overlap < 1:
                    assert jaccard(row["messages"][-1]["content"], other["messages"][-1]["content"]) < overlap


@given(rates=st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.6, 0.9, 1.0]), max_size=40), share=st.floats(0.1, 1))
def test_balance_bounds_the_largest_quarter_and_drops_no_more_than_it_must(rates, share):
    kept = balance(rates, share, np.random.default_rng(0))
    assert kept == sorted(set(kept))
    before, after = (Counter(quarter(rates[n]) for n in numbers) for numbers in (range(len(rates)), kept))
    assert set(before) == set(after)
    allowed = max(share, 1 / max(len(before), 1))
    cap = max(after.values(), default=0)
    assert cap <= max(1, allowed * len(kept) + 1e-9)
    assert all(after[name] == min(before[name], cap) for name in before)
    larger = [min(size, cap + 1) for size in before.values()]
    if any(size > cap for size in before.values()):
        assert cap + 1 > allowed * sum(larger)


def test_the_histogram_counts_every_prompt_once():
    rates = [0.0, 0.1, 0.25, 0.26, 0.5, 0.75, 0.9, 1.0, 1.0]
    assert histogram(rates) == {"0": 1, "0 to 1/4": 2, "1/4 to 1/2": 2, "1/2 to 3/4": 1, "3/4 to 1": 1, "1": 2}


def test_rollouts_of_one_prompt_compete_and_early_ones_do_not_count():
    def row(step, task, *texts):
        outputs = [{"text": text, "score": 1.0, "finish": "stop", "tokens": 3, "reward": 1.0} for text in texts]
        messages = [{"role": "user", "content": f"question {task}"}]
        return {"step": step, "task": task, "task_set": "sums", "messages": messages, "outputs": outputs}

    rows = [row(0, "a", "early", "too"), row(2, "a", "x"), row(3, "b", "y"), row(3, "a", "z")]
    groups, early = rollout_groups(rows, 0.5)
    assert early == 2
    assert {one.task: [answer.text for answer in one.answers] for one in groups} == {"a": ["x", "z"], "b": ["y"]}
    assert rollout_groups([], 0.5) == ([], 0)
