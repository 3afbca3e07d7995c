"""Objectives against independent formulas: each example alone, `torch.nn.functional`, the paper's equation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.training.batch import Batch, Example, build_batch, pack
from loopline.training.objectives import DPO, NextToken, score_tokens, sum_by_sequence
from tests.support_model import tiny_model

MODEL = tiny_model(11)
weights = st.sampled_from([0.0, 1.0, 1.0, 0.25])
examples_strategy = st.lists(
    st.lists(st.tuples(st.integers(10, 299), weights), min_size=2, max_size=14), min_size=1, max_size=6
)


def alone(model, tokens):
    """Log-prob of each id after the first, from an ordinary forward of the one sequence."""
    logits = model.logits(model(torch.tensor([tokens[:-1]])))[0]
    return -F.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")


@settings(max_examples=10)
@given(rows=examples_strategy, row_length=st.integers(14, 60))
def test_next_token_equals_cross_entropy_of_each_example_alone(rows, row_length):
    examples = [Example([t for t, _ in row], [w for _, w in row]) for row in rows]
    with torch.no_grad():
        losses, counts = zip(*(NextToken().loss(MODEL, b)[:2] for b in pack(examples, row_length, 2)), strict=True)
        expected = sum(-float(alone(MODEL, e.tokens) @ torch.tensor(e.weights[1:])) for e in examples)
    assert float(sum(losses)) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert sum(counts) == pytest.approx(sum(w for e in examples for w in e.weights[1:]))


def test_next_token_of_whole_rows_is_the_mean_over_every_id_but_the_first():
    tokens = torch.randint(10, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    total, count, metrics = NextToken().loss(MODEL, Batch(tokens))
    logits = MODEL.logits(MODEL(tokens))[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, tokens[:, 1:].flatten())
    assert count == 33
    torch.testing.assert_close(total / count, expected)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_its_gradient_is_that_of_cross_entropy_and_reaches_nothing_without_weight():
    tokens = [20, 30, 40, 50]
    model = tiny_model(1, tie_word_embeddings=False)
    total, count, _ = NextToken().loss(model, build_batch([[Example(tokens, [0, 0, 1.0, 0.5])]]))
    (total / count).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (-(alone(model, tokens) @ torch.tensor([0, 1.0, 0.5])) / 1.5).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-5, rtol=1e-3)
    # The last id is only ever predicted, never read.
    assert float(ours["embedding.weight"][50].abs().sum()) == 0
    # An example without any weight adds nothing to either side.
    silent = build_batch([[Example(tokens, [0, 0, 1.0, 0.5]), Example([60, 61, 62], [0, 0, 0])]])
    assert float(NextToken().loss(model, silent)[0]) == pytest.approx(float(total), rel=1e-5)
    assert NextToken().loss(model, silent)[1] == count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
def test_scores_are_log_probs_and_entropies_at_the_temperature(temperature):
    example = Example([20, 30, 40, 50, 60], [0, 1, 0, 1, 1])
    scores = score_tokens(MODEL, build_batch([[Example([9, 8], [0, 0]), example]]), temperature, with_entropy=True)
    with torch.no_grad():
        logits = MODEL.logits(MODEL(torch.tensor([example.tokens])))[0] / temperature
    distributions = torch.distributions.Categorical(logits=logits[:-1])
    keep = torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        scores.logprobs_M, distributions.log_prob(torch.tensor(example.tokens[1:]))[keep], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(scores.entropy_M, distributions.entropy()[keep], atol=1e-5, rtol=1e-4)
    assert scores.index_M.tolist() == [3, 5, 6]
    assert not scores.entropy_M.requires_grad


PROMPT, CHOSEN, REJECTED = [30, 31, 32], [40, 41, 1], [50, 51, 52, 53, 1]


def answer(tokens, **scalars):
    return Example([*PROMPT, *tokens], [0.0] * len(PROMPT) + [1.0] * len(tokens), scalars=scalars)


def answer_logprob(model, tokens):
    """Summed log-prob of an answer after the prompt, counted token by token."""
    with torch.no_grad():
        scores = model.logits(model(torch.tensor([[*PROMPT, *tokens]])))[0].log_softmax(-1)
    return math.fsum(float(scores[len(PROMPT) - 1 + i, token]) for i, token in enumerate(tokens))


def with_references(reference):
    return [answer(tokens, reference=answer_logprob(reference, tokens)) for tokens in (CHOSEN, REJECTED)]


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("sft_weight", [0.0, 0.2])
def test_dpo_equals_equation_7_against_a_reference_policy(beta, sft_weight):
    policy, reference = tiny_model(21), tiny_model(22)
    total, pairs, metrics = DPO(beta, sft_weight).loss(policy, build_batch([with_references(reference)]))
    chosen, rejected = (
        beta * (answer_logprob(policy, tokens) - answer_logprob(reference, tokens)) for tokens in (CHOSEN, REJECTED)
    )
    expected = math.log1p(math.exp(-(chosen - rejected)))
    expected -= sft_weight * answer_logprob(policy, CHOSEN) / len(CHOSEN)
    assert pairs == 1
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert metrics["chosen_reward"] == pytest.approx(chosen, rel=1e-3)
    assert metrics["rejected_reward"] == pytest.approx(rejected, rel=1e-3)
    assert metrics["accuracy"] == float(chosen > rejected)


def test_at_the_reference_policy_the_loss_is_the_log_of_two():
    model = tiny_model(23)
    total, _, metrics = DPO(0.5).loss(model, build_batch([with_references(model)]))
    assert float(total) == pytest.approx(math.log(2), rel=1e-4)
    assert metrics["chosen_reward"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", [24, 25, 26])
def test_a_small_step_down_the_gradient_raises_the_margin(seed):
    model = tiny_model(seed)
    pair = with_references(model)

    def margin():
        return answer_logprob(model, CHOSEN) - answer_logprob(model, REJECTED)

    before = margin()
    DPO(0.5).loss(model, build_batch([pair]))[0].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=1e-3)
    assert margin() > before + 1e-4
    assert DPO(0.5).loss(model, build_batch([pair]))[2]["accuracy"] == 1.0


def test_the_prompt_and_the_padding_of_a_pair_cancel():
    model = tiny_model(27)
    pair = with_references(model)
    others = [answer([60, 1], reference=-3.0), answer([61, 62, 63, 64, 65, 66, 1], reference=-4.0)]
    alone_total = float(DPO(0.3).loss(model, build_batch([pair]))[0])
    both = float(DPO(0.3).loss(model, build_batch([pair, others]))[0])
    assert both - float(DPO(0.3).loss(model, build_batch([others]))[0]) == pytest.approx(alone_total, rel=1e-4)


def test_sums_by_sequence_keep_silent_sequences():
    batch = build_batch([[Example([10, 11, 12], [0, 1, 1]), Example([13, 14], [0, 0])], [Example([15, 16], [0, 1])]])
    scores = score_tokens(MODEL, batch)
    assert sum_by_sequence(torch.ones_like(scores.logprobs_M), scores, batch).tolist() == [2, 0, 1]
