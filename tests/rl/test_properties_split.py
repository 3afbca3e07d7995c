"""One optimizer step is one step: however it is split, packed, or shared out over updates of a rollout."""

import pytest
import torch

from loopline.rl.config import PRESETS, PolicyGradientConfig
from loopline.rl.examples import example_of
from loopline.rl.objective import GRPO
from loopline.training.batch import Batch, Example, build_batch, pack
from loopline.training.loop import accumulate
from loopline.training.objectives import NextToken
from tests.support_model import tiny_model

LENGTHS = (3, 9, 1, 6, 12, 2, 7, 5)


def samples(config, count=8, seed=0):
    """Samples of unequal lengths with arbitrary log-probs of every kind."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = LENGTHS[number % 8]
        tokens = torch.randint(10, 300, (3 + length,), generator=generator).tolist()
        noise = torch.randn(3, length, generator=generator) * 0.4 - 5.7
        silent = [0.0] * 3
        chosen = [False] * 3 + [True] * length
        made = example_of(tokens, chosen, [*silent, *noise[0].tolist()], float(number - 3.4), config)
        extras = {
            "sampler_logprobs": [*silent, *noise[1].tolist()],
            "reference_logprobs": [*silent, *noise[2].tolist()],
        }
        found.append(Example(made.tokens, made.weights, {**made.extras, **extras}, made.scalars))
    return found


def gradient(objective, batches):
    """The step's gradient in double precision, where rounding hides nothing."""
    model = tiny_model(50).double()
    accumulate(model, objective, batches)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def split(examples, size):
    """Micro-batches of `size` sequences, one row each."""
    return [build_batch([[e] for e in examples[n : n + size]]) for n in range(0, len(examples), size)]


CONFIGS = {
    **{name: PolicyGradientConfig(preset=name) for name in PRESETS},
    "token": PolicyGradientConfig(),
    "sequence": PolicyGradientConfig(normalizer="sequence"),
    "constant": PolicyGradientConfig(normalizer="constant"),
    "dual clip": PolicyGradientConfig(dual_clip=3.0),
    "KL": PolicyGradientConfig(kl_coefficient=0.2),
    "KL per sample": PolicyGradientConfig(kl_coefficient=0.2, ratio_level="sequence", normalizer="sequence"),
    "token mask": PolicyGradientConfig(importance_correction="token_mask", importance_cap=1.1),
    "sample mask": PolicyGradientConfig(importance_correction="sequence_mask", importance_cap=1.1),
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_step_of_eight_is_the_same_in_one_two_four_or_eight_micro_batches(name):
    config = CONFIGS[name]
    objective = GRPO.from_config(config)
    found = [gradient(objective, split(samples(config), size)) for size in (8, 4, 2, 1)]
    assert float(found[0].abs().max()) > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_same_holds_for_the_next_token(size):
    examples = samples(PolicyGradientConfig())
    torch.testing.assert_close(
        gradient(NextToken(), split(examples, size)), gradient(NextToken(), split(examples, 8)), atol=1e-10, rtol=1e-6
    )


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("row_length", [15, 40])
def test_packing_changes_nothing(name, row_length):
    config = CONFIGS[name]
    objective = GRPO.from_config(config)
    packed = gradient(objective, pack(samples(config), row_length, 2))
    torch.testing.assert_close(packed, gradient(objective, split(samples(config), 1)), atol=1e-10, rtol=1e-6)


def test_packed_logits_equal_unpacked_ones_and_no_label_crosses_a_border():
    examples = samples(PolicyGradientConfig())
    model = tiny_model(51)
    batch = build_batch([examples[:3], examples[3:]])
    with torch.no_grad():
        logits = model.logits(model(batch.tokens_BT, positions_BT=batch.positions_BT, mask=batch.mask()))
        for row, line in enumerate((examples[:3], examples[3:])):
            at = 0
            for example in line:
                alone = model.logits(model(torch.tensor([example.tokens])))[0]
                end = at + len(example.tokens)
                torch.testing.assert_close(logits[row, at:end], alone, atol=1e-5, rtol=1e-4)
                # The first id of a sequence is never predicted, whatever weight it was given.
                assert batch.weights_BT[row, at] == 0
                at = end
    heavy = build_batch([[Example(e.tokens, [1.0] * len(e.tokens)) for e in examples[:3]]])
    assert float(heavy.weights_BT.sum()) == sum(len(e.tokens) - 1 for e in examples[:3])


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_updates_of_a_rollout_need_not_match_its_accumulation(normalizer, micro_batches):
    """A rollout of 16 in two updates: each update's gradient is its own samples', whatever the rollout's size.

    The two, weighted by what they count, make the gradient of the whole rollout at once.
    """
    config = PolicyGradientConfig(normalizer=normalizer)
    objective = GRPO.from_config(config)
    rollout = samples(config, 16)
    halves = [rollout[:8], rollout[8:]]
    found = [gradient(objective, split(half, 8 // micro_batches)) for half in halves]
    for half, other in zip(halves, found, strict=True):
        torch.testing.assert_close(other, gradient(objective, split(half, 8)), atol=1e-10, rtol=1e-6)
    counts = [sum(e.scalars["normalizer"] for e in half) for half in halves]
    together = sum(c * g for c, g in zip(counts, found, strict=True)) / sum(counts)
    torch.testing.assert_close(together, gradient(objective, split(rollout, 16)), atol=1e-10, rtol=1e-6)


def test_a_constant_normalizer_does_not_depend_on_the_padding():
    config = PolicyGradientConfig(normalizer="constant", max_new_tokens=20)
    examples = samples(config)
    wide = build_batch([[e] for e in examples])
    assert wide.tokens_BT.shape[1] == 15
    assert isinstance(wide, Batch)
    assert float(wide.scalars["normalizer"].sum()) == 8 * 20
