"""Reward models: the places that are scored, and the losses against plain arithmetic."""

import math

import pytest
import torch

from loopline.model.heads import ScoreModel
from loopline.training.batch import Batch, Example, build_batch, pack
from loopline.training.loop import accumulate
from loopline.training.objectives import BradleyTerry, Pointwise, ProcessReward
from loopline.training.objectives.reward_model import bradley_terry, last_places, pointwise, process_reward
from tests.support_model import tiny_model


def score_model(seed=0):
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
    return ScoreModel(tiny_model(seed), 1, head)


def alone(model, tokens):
    """The scores of one sequence by itself, at every place."""
    with torch.no_grad():
        return model.score(model(torch.tensor([tokens])))[0, :, 0].tolist()


PAIRS = [([20, 30, 40], [20, 30, 50, 60]), ([21, 31], [21, 33, 43, 53, 63, 1]), ([22, 1], [22, 2]), ([9, 8, 7], [9, 1])]


def examples(**scalars):
    return [
        Example(tokens, [0.0] + [1.0] * (len(tokens) - 1), scalars={k: v(n) for k, v in scalars.items()})
        for n, tokens in enumerate(tokens for pair in PAIRS for tokens in pair)
    ]


def test_a_sequences_place_is_its_last_token_also_when_packed():
    batch = build_batch([[Example([1, 2, 3], [0, 0, 0]), Example([4, 5], [0, 0])], [Example([6], [0])]])
    assert last_places(batch).tolist() == [2, 4, 5]
    assert last_places(Batch(torch.zeros(3, 4, dtype=torch.long))).tolist() == [3, 7, 11]


@pytest.mark.parametrize("margin", [None, 0.4])
@pytest.mark.parametrize("centering", [0.0, 0.05])
def test_bradley_terry_equals_its_equation_on_each_pair_alone(margin, centering):
    model = score_model(1)
    scalars = {} if margin is None else {"margin": lambda n: margin}
    total, count, metrics = BradleyTerry(centering).loss(model, build_batch([examples(**scalars)]))
    expected = right = 0.0
    for chosen, rejected in PAIRS:
        c, r = alone(model, chosen)[-1], alone(model, rejected)[-1]
        expected += math.log1p(math.exp(-(c - r - (margin or 0.0)))) + centering * (c + r) ** 2
        right += c > r
    assert count == len(PAIRS)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    assert metrics["accuracy"] == right / len(PAIRS)


def test_a_step_down_the_gradient_raises_the_chosen_above_the_rejected():
    model = score_model(2)
    before = BradleyTerry().loss(model, build_batch([examples()]))[0]
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=1e-3)
    assert float(BradleyTerry().loss(model, build_batch([examples()]))[0]) < float(before)


def test_pointwise_losses():
    scores, labels = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0])
    assert pointwise(scores, labels).tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(-2))])
    assert pointwise(scores, labels, "squared").tolist() == pytest.approx([0.125, 2.0])
    assert torch.equal(process_reward(scores, labels), pointwise(scores, labels))
    assert bradley_terry(scores[:1], scores[1:]).item() == pytest.approx(math.log1p(math.exp(-2.5)))


@pytest.mark.parametrize("kind", ["logistic", "squared"])
def test_pointwise_scores_every_answer_once(kind):
    model = score_model(3)
    total, count, _ = Pointwise(kind).loss(model, build_batch([examples(label=lambda n: float(n % 2))]))
    found = torch.tensor([alone(model, tokens)[-1] for pair in PAIRS for tokens in pair])
    labels = torch.tensor([0.0, 1.0] * len(PAIRS))
    assert count == 8
    assert float(total.detach()) == pytest.approx(float(pointwise(found, labels, kind).sum()), rel=1e-4)


STEPS = [
    Example([20, 30, 40, 50, 60], [0, 0, 1.0, 0, 1.0], {"label": [0, 0, 1.0, 0, 0.0]}),
    Example([21, 31, 41], [0, 0, 1.0], {"label": [0, 0, 1.0]}),
    Example([23, 33, 43, 53], [0, 1.0, 1.0, 0], {"label": [0, 0.0, 1.0, 1.0]}),
]


def test_a_process_reward_counts_marked_tokens_and_no_others():
    model = score_model(4)
    total, count, metrics = ProcessReward().loss(model, build_batch([STEPS]))
    expected, right = 0.0, 0
    for example in STEPS:
        scores = alone(model, example.tokens)
        for place, weight in enumerate(example.weights):
            if weight:
                label = example.extras["label"][place]
                expected += math.log1p(math.exp(-scores[place] if label else scores[place]))
                right += (scores[place] > 0) == bool(label)
    assert count == 5
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(right / 5)
    with pytest.raises(ValueError, match="weights"):
        ProcessReward().loss(model, Batch(torch.zeros(1, 3, dtype=torch.long)))


@pytest.mark.parametrize("rows_per_batch", [1, 2, 3])
def test_steps_split_into_batches_give_one_gradient(rows_per_batch):
    def gradient(batches):
        model = score_model(5).double()
        accumulate(model, ProcessReward(), batches)
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(
        gradient(pack(STEPS, 6, rows_per_batch)), gradient([build_batch([STEPS])]), atol=1e-9, rtol=1e-6
    )
