"""PPO: advantages by the definition, values where they belong, learning from groups that all earn the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopline.grading.grade import Grade
from loopline.grading.reward import RewardConfig
from loopline.inference.engine import TorchEngine
from loopline.model.heads import ScoreModel
from loopline.rl.collect import Collector
from loopline.rl.objective import GRPO
from loopline.rl.ppo import (
    PPO,
    ActorCritic,
    PPORolloutSource,
    explained_variance,
    score_values,
    value_examples,
    whiten,
    with_values,
)
from loopline.rl.ppo_config import PPOConfig
from loopline.rl.rollout_config import RolloutConfig
from loopline.training.batch import Example, build_batch, pack
from loopline.training.config import OptimizerConfig
from loopline.training.loop import accumulate
from loopline.training.optimizer import build_optimizers
from tests.rl.support import CONFIG, SHARES, TASKS, ParityGraders, policy
from tests.support_model import tiny_model

answers = st.lists(
    st.tuples(st.floats(-1, 1), st.lists(st.floats(-2, 2), min_size=1, max_size=6)), min_size=1, max_size=5
)


def plain(reward, values, discount, trace):
    """Advantages of one answer: the sum over all later differences, as the paper writes it."""
    rewards = [0.0] * (len(values) - 1) + [reward]
    following = [*values[1:], 0.0]
    deltas = [r + discount * f - v for r, v, f in zip(rewards, values, following, strict=True)]
    return [
        sum((discount * trace) ** (later - at) * deltas[later] for later in range(at, len(deltas)))
        for at in range(len(deltas))
    ]


@given(answers, st.floats(0.1, 1), st.floats(0, 1), st.integers(1, 3))
def test_advantages_are_the_definition_at_the_sampled_tokens_and_nowhere_else(answers, discount, trace, prompt):
    config = PPOConfig(discount=discount, trace=trace, whiten=False)
    examples, rows = [], []
    for number, (_, values) in enumerate(answers):
        # A token that was forced stands between the sampled ones, and is jumped over.
        weights = [0.0] * prompt + [1.0] + [0.0] + [1.0] * (len(values) - 1)
        places = iter(values)
        examples.append(Example([20 + number] * len(weights), weights))
        rows.append([next(places) if weight else 0.0 for weight in weights])
    found = with_values(examples, [reward for reward, _ in answers], rows, config)
    for example, (reward, values), row in zip(found, answers, rows, strict=True):
        advantages = plain(reward, values, discount, trace)
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        marks = [weight > 0 for weight in example.weights]
        for name, expected in (("advantages", advantages), ("returns", returns)):
            pairs = list(zip(example.extras[name], marks, strict=True))
            assert [value for value, mark in pairs if mark] == pytest.approx(expected, abs=1e-5)
            assert not any(value for value, mark in pairs if not mark)
        assert example.extras["old_values"] == pytest.approx(row, abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_whitening_gives_mean_zero_and_deviation_one(values):
    found = whiten(torch.tensor(values).double())
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    if max(values) - min(values) > 1e-3:
        assert float(found.pow(2).mean()) == pytest.approx(1, abs=1e-3)


def critic(seed=3, value_seed=4):
    decoder = tiny_model(value_seed, max_position_embeddings=256)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(value_seed))
    return ActorCritic(policy(seed), ScoreModel(decoder, weight=weight))


def test_a_value_is_read_before_the_token_it_belongs_to():
    model = critic()
    examples = [
        Example([20, 30, 40, 50], [0.0, 0.0, 1.0, 1.0]),
        Example([21, 31, 41], [0.0, 1.0, 0.0]),
        Example([22, 32, 42, 52, 62], [0.0, 1.0, 0.0, 0.5, 1.0]),
    ]
    for example, row in zip(examples, value_examples(model.value, examples, 12, 1), strict=True):
        plain = model.value.score(model.value(torch.tensor([example.tokens])))[0, :, 0].tolist()
        for place, weight in enumerate(example.weights):
            assert row[place] == (pytest.approx(plain[place - 1], abs=1e-5) if weight else 0)
    # What the policy writes at a place cannot change what was expected before it.
    changed = [Example([20, 30, 40, 99], [0.0, 0.0, 1.0, 1.0])]
    one, other = value_examples(model.value, examples[:1], 12, 1), value_examples(model.value, changed, 12, 1)
    assert one == other


def batch_of(model, rewards=(1.0, 0.0), config=PPOConfig()):  # noqa: B008
    examples = [
        Example([20, 30, 40 + n, 50], [0.0, 0.0, 1.0, 1.0], {"old_logprobs": [0, 0, -2.0, -2.0]}, {"normalizer": 2.0})
        for n in range(len(rewards))
    ]
    values = value_examples(model.value, examples, 8, 2)
    return with_values(examples, list(rewards), values, config), values


def test_values_that_foresee_the_returns_explain_them():
    examples, values = batch_of(critic(), config=PPOConfig(whiten=False))
    assert explained_variance(examples, [e.extras["returns"] for e in examples]) == pytest.approx(1)
    assert explained_variance(examples, values) < 1


def test_the_loss_is_the_policys_plus_the_value_networks():
    model = critic()
    config = PPOConfig(value_coefficient=0.25)
    batch = build_batch([[example] for example in batch_of(model)[0]])
    policy_loss = GRPO(0.2, 0.2, 1.0)
    total, normalizer, metrics = PPO(policy_loss, config).loss(model, batch)
    alone, same_normalizer, _ = policy_loss.loss(model.policy, batch)
    values, index = score_values(model.value, batch)
    errors = 0.5 * (values - batch.extras["returns"].reshape(-1)[index]) ** 2
    assert normalizer == same_normalizer == 4
    torch.testing.assert_close(total, alone + 0.25 * errors.sum())
    assert metrics["value_loss"] == pytest.approx(float(errors.detach().sum()) / 4)
    # Neither loss reaches into the other's network.
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.policy.parameters())
    assert model.value.score.weight.grad.abs().sum() > 0
    model.zero_grad()
    errors_only = score_values(model.value, batch)[0].sum()
    errors_only.backward()
    assert all(p.grad is None for p in model.policy.parameters())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_gradient_does_not_depend_on_the_split(rows):
    model = critic()
    examples, _ = batch_of(model, (1.0, 0.0, 0.5, 1.0, 0.0))
    found = []
    for size in (5, rows):
        model.zero_grad()
        accumulate(model, PPO(GRPO(0.2, 0.2, 1.0), PPOConfig()), pack(examples, 4, size))
        found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


class Equal(ParityGraders):
    """Every answer earns the same."""

    def grade(self, samples, name=None):
        return [Grade(1.0) for _ in samples]


def make_ppo_source(model, tokenizer, graders, record, config=CONFIG):
    config = config.model_copy(update={"drop_zero_signal": False})
    engine = TorchEngine(model.policy, tokenizer)
    collector = Collector(engine, TASKS, SHARES, graders, RewardConfig(), config, RolloutConfig(), 7)
    return PPORolloutSource(model, PPOConfig(), collector, record)


def test_groups_that_all_earn_the_same_teach_ppo_and_the_line_says_so(tokenizer, tmp_path):
    model = critic()
    source = make_ppo_source(model, tokenizer, Equal(), tmp_path)
    batches = source.next(0)
    assert sum(int(b.sequences_BT.max()) + 1 for b in batches) == 16
    assert any(b.extras["advantages"].abs().sum() > 0 for b in batches)
    assert "; learning from every graded answer, of whose returns the values explain" in source.why()
    assert source.metrics()["rollout/zero_signal_share"] == 1


def test_the_value_network_learns_what_answers_earn(tokenizer, tmp_path):
    model = ActorCritic(policy(), ScoreModel(tiny_model(4, max_position_embeddings=256)))
    source = make_ppo_source(model, tokenizer, Equal(), tmp_path)
    objective = PPO(GRPO(0.2, 0.2, 1.0), PPOConfig(value_clip=10.0))
    optimizers = build_optimizers(model, OptimizerConfig(learning_rate=3e-3, weight_decay=0.0))
    losses = []
    for step in range(12):
        batches = source.next(step)
        losses.append(accumulate(model, objective, batches)[1]["value_loss"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    # At values of zero a return is lambda to the power of the tokens left.
    assert 0.3 < losses[0] < 0.5 and losses[-1] < 0.1


def test_an_answer_that_could_not_be_graded_has_no_advantage(tokenizer, graders, tmp_path):
    model = critic()
    source = make_ppo_source(model, tokenizer, graders, tmp_path)
    batches = source.next(0)
    assert source.facts.ungradable > 0
    assert sum(int(b.sequences_BT.max()) + 1 for b in batches) == 16 - source.facts.ungradable
