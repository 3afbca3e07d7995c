"""Scores in blocks equal scores at once, in value and gradient, and never hold all logits."""

import pytest
import torch

from loopline.training.batch import Batch, Example, build_batch
from loopline.training.objectives import NextToken, blocks, score_tokens
from loopline.training.objectives.blocks import linear_scores, linear_total
from loopline.training.objectives.scores import total_logprob
from tests.support_model import tiny_model

EXAMPLES = [
    [Example([20, 30, 40, 50, 60], [0, 0, 1, 1, 0.5]), Example([21, 31, 41], [0, 1, 1])],
    [Example([22, 32, 42, 52, 62, 72, 82], [0, 1, 1, 1, 0, 1, 2])],
]


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Scaled(torch.nn.Module):
    """A model whose output layer is more than a matrix."""

    plain_output = False

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *args, **options):
        return self.model(*args, **options)

    def logits(self, hidden):
        return 3 * torch.tanh(self.model.logits(hidden) / 3)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("limit", [300, 1000])
def test_blocks_change_neither_scores_nor_gradients(plain, temperature, limit):
    model = tiny_model(3, tie_word_embeddings=False)
    model = model if plain else Scaled(model)
    batch = build_batch(EXAMPLES)
    whole = score_tokens(model, batch, temperature, with_entropy=True)
    parts = score_tokens(model, batch, temperature, with_entropy=True, limit=limit)
    torch.testing.assert_close(parts.logprobs_M, whole.logprobs_M, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.entropy_M, whole.entropy_M, atol=1e-5, rtol=1e-5)
    assert not parts.entropy_M.requires_grad
    slope = torch.linspace(-1, 2, len(whole.logprobs_M))
    expected = gradients(model, (whole.logprobs_M * slope).sum())
    found = gradients(model, (parts.logprobs_M * slope).sum())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


def test_small_batches_are_scored_at_once_bit_for_bit():
    model, batch = tiny_model(3), build_batch(EXAMPLES)
    logits = model.logits(model(batch.tokens_BT, positions_BT=batch.positions_BT, mask=batch.mask()))
    scores = score_tokens(model, batch)
    rows, columns = scores.index_M // batch.tokens_BT.shape[1], scores.index_M % batch.tokens_BT.shape[1]
    expected = logits[rows, columns - 1].log_softmax(-1).gather(-1, batch.tokens_BT[rows, columns][:, None])[:, 0]
    torch.testing.assert_close(scores.logprobs_M, expected, atol=1e-6, rtol=1e-6)
    assert blocks.block_rows(1000, 1024, "cpu") is None


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_total_in_blocks_is_the_weighted_sum(monkeypatch, dynamic, weighted):
    model = tiny_model(5)
    batch = build_batch(EXAMPLES) if weighted else Batch(torch.randint(10, 300, (3, 9)))
    whole = NextToken(dynamic).loss(model, batch)
    expected = gradients(model, whole[0])
    monkeypatch.setitem(blocks.WHOLE_LOGITS, "cpu", 700)
    parts = NextToken(dynamic).loss(model, batch)
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-5)
    assert parts[1] == whole[1]
    found = gradients(model, parts[0])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert float(total_logprob(model, batch, dynamic)[0]) == pytest.approx(-float(whole[0]), rel=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_derivatives_are_right_to_double_precision(dynamic):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.tensor([0, 6, 3, 3, 1])
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_scores(h, w, target, 0.7, True, 2)[0], (hidden, weight))
    if not dynamic:
        assert torch.autograd.gradcheck(lambda h, w: linear_total(h, w, target, weights, False, 2), (hidden, weight))
        return
    # The probability that weighs each token is held fixed, so the reference holds it fixed too.
    logprobs = (hidden @ weight.T).log_softmax(-1).gather(-1, target[:, None])[:, 0]
    expected = torch.autograd.grad((weights * logprobs.detach().exp() * logprobs).sum(), (hidden, weight))
    found = torch.autograd.grad(linear_total(hidden, weight, target, weights, True, 2), (hidden, weight))
    torch.testing.assert_close(found, expected)


def test_a_frozen_output_layer_gets_no_gradient():
    model = tiny_model(6, tie_word_embeddings=False)
    model.head.weight.requires_grad_(False)
    score_tokens(model, build_batch(EXAMPLES), limit=300).logprobs_M.sum().backward()
    assert model.head.weight.grad is None
    assert float(model.embedding.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("fused", [True, False])
def test_nothing_of_the_size_of_all_logits_is_kept_for_the_way_back(fused):
    model = tiny_model(7, vocab_size=4000)
    batch = Batch(torch.randint(10, 4000, (4, 40)))
    count, kept = 4 * 39, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        if fused:
            total_logprob(model, batch, limit=40_000)
        else:
            score_tokens(model, batch, limit=40_000)
    assert max(kept) <= 4000 * 32 < count * 4000


def test_under_autocast_blocks_are_as_close_as_bfloat16_is():
    model, batch = tiny_model(8), build_batch(EXAMPLES)
    exact = score_tokens(model, batch).logprobs_M
    with torch.autocast("cpu", torch.bfloat16):
        whole = score_tokens(model, batch).logprobs_M
        parts = score_tokens(model, batch, limit=600).logprobs_M
    torch.testing.assert_close(parts, exact, atol=0.05, rtol=0.02)
    torch.testing.assert_close(parts, whole.float(), atol=0.05, rtol=0.02)
    found, expected = gradients(model, parts.sum()), gradients(model, exact.sum())
    for name in expected:
        cosine = torch.cosine_similarity(found[name].reshape(-1), expected[name].reshape(-1), dim=0)
        assert float(cosine) > 0.99, name
