"""Sharing beginnings changes nothing but the number of ids that are computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.rl.objective import GRPO
from loopline.training.batch import Example, pack
from loopline.training.loop import accumulate
from loopline.training.objectives import NextToken, score_tokens
from loopline.training.prefixes import by_beginning, pack_shared, split_bundle
from tests.support_model import tiny_model

groups = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 10), min_size=1, max_size=5)), min_size=1, max_size=4
)


def examples_of(groups, seed=0):
    """Examples of (length of a beginning, lengths of what follows it)."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count):
        return torch.randint(10, 300, (count,), generator=generator).tolist()

    found = []
    for before, answers in groups:
        prompt = ids(before)
        for length in answers:
            found.append(
                Example(
                    prompt + ids(length),
                    [0.0] * before + [1.0 / length] * length,
                    {
                        "advantages": [0.0] * before + [float(len(found) % 3 - 1)] * length,
                        "old_logprobs": [0.0] * before + [-5.7] * length,
                        "id": [float(len(found))] * (before + length),
                    },
                    {"normalizer": 1.0},
                )
            )
    return found


def gradients(objective, batches, seed=3):
    model = tiny_model(seed)
    normalizer, metrics = accumulate(model, objective, batches)
    return normalizer, metrics, [parameter.grad for parameter in model.parameters()]


@settings(max_examples=15)
@given(groups=groups, row=st.integers(22, 80), attention=st.integers(8, 4000))
def test_gradients_are_those_of_the_examples_side_by_side(groups, row, attention):
    examples = examples_of(groups)
    shared = pack_shared(examples, row, 3, attention)
    assert sum(batch.token_count for batch in shared) <= sum(len(example.tokens) for example in examples)
    for objective in (NextToken(), GRPO()):
        normalizer, metrics, found = gradients(objective, shared)
        expected_normalizer, expected_metrics, expected = gradients(objective, pack(examples, row, 3))
        assert normalizer == pytest.approx(expected_normalizer)
        assert metrics["loss"] == pytest.approx(expected_metrics["loss"], abs=1e-5)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-3)


@settings(max_examples=15)
@given(groups=groups, row=st.integers(22, 80))
def test_every_answer_is_scored_as_if_it_stood_alone(groups, row):
    model, examples = tiny_model(5).eval(), examples_of(groups, seed=1)
    found = {}
    with torch.no_grad():
        for batch in pack_shared(examples, row, 2, 4000):
            scores = score_tokens(model, batch)
            owners = batch.extras["id"].reshape(-1)[scores.index_M]
            for owner in owners.unique():
                found[int(owner)] = scores.logprobs_M[owners == owner]
        for number, example in enumerate(examples):
            whole = model.logits(model(torch.tensor([example.tokens])))[0].log_softmax(-1)
            silent = example.weights.count(0.0)
            alone = whole[silent - 1 : -1].gather(1, torch.tensor(example.tokens[silent:])[:, None])[:, 0]
            torch.testing.assert_close(found.pop(number), alone, atol=1e-5, rtol=1e-4)
    assert not found


def test_a_prompt_is_computed_once_for_all_answers_to_it():
    examples = examples_of([(40, [5] * 8)])
    (batch,) = pack_shared(examples, 128, 4, 4000)
    assert batch.token_count == 40 + 8 * 5
    assert [bundle.skip for bundle in by_beginning(examples)] == [40]


def test_where_attention_is_dear_rows_stay_short_and_the_prompt_is_repeated():
    examples = examples_of([(4, [60] * 8)])
    short, long = (pack_shared(examples, 64, 8, attention) for attention in (1, 10**6))
    assert max(batch.tokens_BT.shape[1] for batch in short) == 64
    assert max(batch.tokens_BT.shape[1] for batch in long) == 4 + 8 * 60
    assert sum(batch.token_count for batch in short) == 8 * 64


@given(own=st.lists(st.integers(1, 30), min_size=1, max_size=12), prompt=st.integers(1, 20))
def test_a_bundle_is_split_into_parts_that_fit_and_lose_nobody(own, prompt):
    (bundle,) = by_beginning(examples_of([(prompt, own)]))
    parts = split_bundle(bundle, prompt + 30)
    assert all(part.length <= prompt + 30 for part in parts)
    assert sorted(id(e) for part in parts for e in part.examples) == sorted(id(e) for e in bundle.examples)


def test_batches_hold_no_more_ids_than_was_asked_for():
    examples = examples_of([(10, [20] * 8)] * 6)
    for batch in pack_shared(examples, 64, 4, 10**6):
        assert batch.tokens_BT.numel() <= 4 * 64 or len(batch.tokens_BT) == 1


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="does not fit a row"):
        pack_shared(examples_of([(10, [60])]), 64, 4, 1)


def test_branches_move_to_a_device_with_their_batch():
    (batch,) = pack_shared(examples_of([(10, [5, 6])]), 64, 4, 1000)
    moved = batch.to("meta")
    assert moved.branches is not None and moved.branches.source_BT.device.type == "meta"
