"""The KL in the reward: the gradient it stands for, what a source makes of it, and its place beside the loss."""

import itertools
import json

import pytest
import torch

from loopline.rl.advantage import batch_advantages
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.kl_reward import penalize, penalized_advantages, token_penalties
from loopline.rl.losses import PolicyInput, policy_loss
from loopline.rl.ppo import with_values
from loopline.rl.ppo_config import PPOConfig
from loopline.training.batch import Example
from tests.rl.support import CONFIG, make_source, policy

LOGITS = torch.tensor([0.3, -0.8, 1.1, 0.0, -0.4], dtype=torch.float64)
REFERENCE = torch.tensor([-0.2, 0.5, 0.7, 0.1, -1.0], dtype=torch.float64).log_softmax(-1)
PAYS = torch.tensor([0.0, 1.0, 0.3, -0.5, 0.8], dtype=torch.float64)
BETA = 0.4
RLOO = PolicyGradientConfig(preset="rloo", kl_coefficient=BETA, group_size=3)


def word(token, old, reference):
    """An answer of one word after a prompt of one."""
    extras = {"advantages": [0.0, 0.0], "old_logprobs": [0.0, old], "reference_logprobs": [0.0, reference]}
    return Example([0, token], [0.0, 1.0], extras)


def test_rloo_climbs_the_reward_less_the_kl():
    """Expected over all groups of three words, its gradient is that of E[r] - beta KL, exactly."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (logprobs.exp() * PAYS).sum().sub(BETA * (logprobs.exp() * (logprobs - REFERENCE)).sum()).backward()
    wanted, old = logits.grad, logprobs.detach()

    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for words in itertools.product(range(5), repeat=3):
        examples = {(0, n): word(w, float(old[w]), float(REFERENCE[w])) for n, w in enumerate(words)}
        penalized = penalize([[float(PAYS[w]) for w in words]], examples, RLOO)
        chosen = torch.tensor(words)
        inputs = PolicyInput(
            logprobs_M=logprobs[chosen],
            old_logprobs_M=old[chosen],
            advantages_M=torch.tensor([penalized[0, n].extras["advantages"][1] for n in range(3)], dtype=torch.float64),
            weights_M=torch.ones(3, dtype=torch.float64),
            owners_M=torch.arange(3),
            reference_logprobs_M=REFERENCE[chosen],
        )
        total = total + old[chosen].sum().exp() * policy_loss(inputs, RLOO).losses_M.mean()
    (-total).backward()
    torch.testing.assert_close(logits.grad, wanted, atol=1e-12, rtol=1e-9)


def test_the_loss_takes_no_second_kl():
    inputs = PolicyInput(*(torch.tensor([value]) for value in (-1.0, -1.0, 0.5, 1.0)), torch.tensor([0]))
    inputs = PolicyInput(**{**vars(inputs), "reference_logprobs_M": torch.tensor([-3.0])})
    plain = policy_loss(inputs, RLOO.model_copy(update={"kl_coefficient": 0.0}))
    assert torch.equal(policy_loss(inputs, RLOO).losses_M, plain.losses_M)
    in_loss = policy_loss(inputs, RLOO.model_copy(update={"kl_in": "loss"}))
    assert not torch.equal(in_loss.losses_M, plain.losses_M)


def test_a_sample_without_a_penalty_counts_like_one_without_reward():
    penalties = {(1, 0): 0.1, (1, 2): -0.2}
    found = penalized_advantages([[1.0, 0.0], [1.0, 5.0, 0.0, None]], penalties, RLOO)
    assert found == pytest.approx({(1, 0): 0.9 - 0.2, (1, 2): 0.2 - 0.9})


def rows(source):
    """What a source would train on: (group, sample) to its example."""
    source.next(0)
    return {(item.group, item.sample): item.example for part in source._parts for item in part}


def config(**changes):
    return CONFIG.model_copy(
        update={
            "kl_coefficient": 0.3,
            "kl_in": "reward",
            "scale_rewards": "none",
            "drop_zero_signal": False,
            "max_new_tokens": 120,
            **changes,
        }
    )


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("scale", ["none", "batch"])
def test_a_source_compares_what_is_left_of_the_rewards(tokenizer, graders, tmp_path, mask, scale):
    """Also of answers that the loss does not see, and of groups that it leaves out."""
    settings = config(mask_truncated=mask, scale_rewards=scale, drop_zero_signal=scale == "batch")
    others = {"reference": policy(8)}
    seen = rows(make_source(tokenizer, graders, tmp_path / "a", config=settings, source=others))
    source = make_source(tokenizer, graders, tmp_path / "b", config=config(), source=others)
    everything = rows(source)
    rewards = [
        [output["reward"] for output in row["outputs"]]
        for row in map(json.loads, (tmp_path / "b" / "000000.jsonl").read_text().splitlines())
    ]
    left = [
        [
            None if reward is None else reward - sum(token_penalties(everything[place, number], 0.3))
            for number, reward in enumerate(row)
        ]
        for place, row in enumerate(rewards)
    ]
    expected = batch_advantages(left, scale)
    assert 0 < len(seen) <= len(everything)
    for (place, number), example in seen.items():
        marks = [weight > 0 for weight in example.weights]
        (found,) = {value for value, mark in zip(example.extras["advantages"], marks, strict=True) if mark}
        assert found == pytest.approx(expected[place][number], abs=1e-6)
        assert not any(value for value, mark in zip(example.extras["advantages"], marks, strict=True) if not mark)
    dropped = {place for place, row in enumerate(rewards) if len({r for r in row if r is not None}) < 2}
    assert {place for place, _ in everything} - {place for place, _ in seen} <= (dropped if scale == "batch" else set())
    assert mask == (len(seen) < len([key for key in everything if scale == "none" or key[0] not in dropped]))


def test_a_value_network_is_told_token_by_token():
    """With nothing expected and nothing discounted, a token's advantage is what is still to come."""
    example = Example(
        [5, 6, 7, 8],
        [0.0, 1.0, 1.0, 1.0],
        {"old_logprobs": [0.0, -1.0, -2.0, -1.5], "reference_logprobs": [0.0, -1.5, -1.0, -1.5]},
    )
    penalties = token_penalties(example, 0.2)
    assert penalties == pytest.approx([0.0, 0.1, -0.2, 0.0])
    plain = PPOConfig(discount=1.0, trace=1.0, whiten=False)
    (found,) = with_values([example], [1.0], [[0.0] * 4], plain, [penalties])
    assert found.extras["advantages"] == pytest.approx([0.0, 1.0 - 0.1 + 0.2, 1.0 + 0.2, 1.0])
