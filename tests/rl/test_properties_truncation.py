"""Truncated answers: out of the loss, its normalizer, entropy and KL alike, while their reward still compares."""

import pytest
import torch

from loopline.grading.grade import Grade, Sample
from loopline.grading.reward import RewardConfig, compute_rewards
from loopline.inference.engine import Completion
from loopline.rl.advantage import group_advantages
from loopline.rl.examples import build_examples, with_extra
from loopline.rl.objective import GRPO
from loopline.training.batch import build_batch
from tests.rl.support import CONFIG, make_group, task
from tests.support_model import tiny_model

REWARDS = [1.0, 0.0, 0.25]
TOKENS = [[20, 21, 22, 1], [30, 31, 1], [40, 41, 42, 43, 44, 45]]


def group(kept=(0, 1, 2)):
    """Three answers to one prompt, the last cut off; advantages always from all three."""
    advantages = group_advantages(REWARDS)
    finish = ["stop", "stop", "length"]
    made = [Completion(TOKENS[n], [-5.0 - 0.2 * n] * len(TOKENS[n]), finish[n], 0) for n in kept]
    chosen = [[values[n] for n in kept] for values in (REWARDS, advantages)]
    return make_group(made, [Grade(r) for r in chosen[0]], *chosen)


def measured(group_, mask_truncated, normalizer):
    config = CONFIG.model_copy(
        update={"mask_truncated": mask_truncated, "normalizer": normalizer, "kl_coefficient": 0.3}
    )
    examples = [
        with_extra(e, reference_logprobs=[5.5 * (w > 0) * -1 for w in e.weights])
        for e in build_examples([group_], config)
    ]
    model = tiny_model(60)
    total, count, metrics = GRPO.from_config(config).loss(model, build_batch([examples]))
    total.backward()
    return count, metrics, torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
def test_a_masked_truncated_answer_leaves_loss_normalizer_and_every_metric(normalizer):
    """As if it had never been in the batch; only the advantages of the others of its group remember it."""
    masked = measured(group(), True, normalizer)
    without = measured(group((0, 1)), True, normalizer)
    assert masked[0] == without[0]
    assert masked[1] == without[1]
    assert {"entropy", "policy_kl", "reference_kl", "clip_high"} <= set(masked[1])
    torch.testing.assert_close(masked[2], without[2], atol=0, rtol=0)
    seen = measured(group(), False, normalizer)
    assert seen[0] > masked[0]
    assert seen[1]["entropy"] != masked[1]["entropy"]


@pytest.mark.parametrize(("length", "penalty"), [(9, 0.0), (10, 0.0), (11, 0.05), (15, 0.25), (20, 0.5), (21, 0.5)])
def test_the_soft_penalty_is_nothing_at_its_lower_edge_and_whole_at_its_upper(length, penalty):
    """DAPO, arXiv:2503.14476, eq. 13."""
    config = RewardConfig(overlong_from=10, overlong_to=20, overlong_penalty=0.5)
    rewards = compute_rewards(config, [Sample(task(1), "2", "length")], [Grade(1.0)], [length], {})
    assert rewards == [pytest.approx(1.0 - penalty)]
