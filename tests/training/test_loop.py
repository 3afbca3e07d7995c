"""The loop's promises: the split of a step does not matter, and a killed run ends in the same bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.rl.objective import GRPO
from loopline.training.batch import Example, build_batch, pack
from loopline.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig, TrainRuntime
from loopline.training.loop import accumulate, train
from loopline.training.objectives import DPO, NextToken
from loopline.training.optimizer import schedule_factor
from loopline.training.sources import ExampleSource, PairSource, apportion, set_indices
from tests.support import make_context
from tests.support_model import tiny_model


def random_examples(seed, count=8, extras=False):
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        length = int(torch.randint(3, 20, (1,), generator=generator))
        tokens = torch.randint(10, 300, (length,), generator=generator).tolist()
        weights = torch.randint(0, 2, (length,), generator=generator).float().tolist()
        weights[-1] = 1.0
        numbers = {}
        if extras:
            numbers = {
                "advantages": torch.randn(length, generator=generator).tolist(),
                "old_logprobs": (-5 + torch.randn(length, generator=generator)).tolist(),
            }
        out.append(Example(tokens, weights, numbers, {"normalizer": float(sum(weights[1:])), "reference": -20.0}))
    return out


def gradient(model, objective, batches):
    model.zero_grad()
    accumulate(model, objective, batches)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


OBJECTIVES = {"next token": NextToken(), "grpo": GRPO(0.2, 0.3, 0.8)}


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), split=st.sampled_from([1, 2, 4]), row=st.sampled_from([20, 37, 160]))
def test_the_gradient_does_not_depend_on_split_or_packing(objective, seed, split, row):
    model = tiny_model(1)
    examples = random_examples(seed, extras=True)
    whole = gradient(model, OBJECTIVES[objective], [build_batch([[example] for example in examples])])
    parts = gradient(model, OBJECTIVES[objective], pack(examples, row, split))
    torch.testing.assert_close(parts, whole, atol=2e-6, rtol=2e-4)


def test_dpo_does_not_depend_on_the_split():
    model = tiny_model(1)
    examples = random_examples(4)
    rows = [examples[i : i + 2] for i in range(0, 8, 2)]
    objective = DPO(0.3, sft_weight=0.1)
    whole = gradient(model, objective, [build_batch(rows)])
    parts = gradient(model, objective, [build_batch(rows[:1]), build_batch(rows[1:])])
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_the_loss_equals_an_explicit_sum():
    model = tiny_model(2)
    examples = random_examples(9)
    total, normalizer, _ = NextToken().loss(model, build_batch([examples[:3], examples[3:]]))
    expected, count = 0.0, 0.0
    for example in examples:
        tokens = torch.tensor([example.tokens])
        scores = model.logits(model(tokens))[0].log_softmax(-1)
        for position in range(1, len(example.tokens)):
            expected -= example.weights[position] * float(scores[position - 1, example.tokens[position]])
            count += example.weights[position]
    assert normalizer == count
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_dpo_equals_its_formula():
    model = tiny_model(3)
    examples = random_examples(12, count=4)
    rows = [examples[:2], examples[2:]]
    total, pairs, _ = DPO(0.4).loss(model, build_batch(rows))

    def score(example):
        scores = model.logits(model(torch.tensor([example.tokens])))[0].log_softmax(-1)
        return sum(
            example.weights[t] * float(scores[t - 1, example.tokens[t]]) for t in range(1, len(example.tokens))
        ) - (-20.0)

    expected = sum(-torch.nn.functional.logsigmoid(torch.tensor(0.4 * (score(a) - score(b)))) for a, b in rows)
    assert pairs == 2
    assert float(total) == pytest.approx(float(expected), rel=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_cut_anywhere_ends_in_the_same_bytes(tmp_path, kind):
    examples = random_examples(20, count=30)
    config = TrainingConfig(
        optimizer=OptimizerConfig(kind=kind, learning_rate=3e-3), runtime=TrainRuntime(save_every=3)
    )

    def run(folder, cuts):
        ctx = make_context(folder)
        for cut in [*cuts, None]:
            model = tiny_model(0)
            source = ExampleSource(examples, 6, 40, 2, seed=5)
            plain = source.next

            def cut_off(step, plain=plain, cut=cut):
                if step == cut:
                    raise Killed
                return plain(step)

            source.next = cut_off
            try:
                train(model, NextToken(), source, 11, config, ctx)
            except Killed:
                continue
            return model
        return None

    whole, resumed = run(tmp_path / "a", []), run(tmp_path / "b", [2, 7, 10])
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_stays_infinite_stops_the_run_with_the_fix(tmp_path):
    model = tiny_model(0)
    with torch.no_grad():
        model.embedding.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="learning_rate"):
        train(
            model,
            NextToken(),
            ExampleSource(random_examples(1), 4, 40, 2, 0),
            9,
            TrainingConfig(),
            make_context(tmp_path),
        )


def test_a_gradient_is_cut_to_its_largest_norm(tmp_path):
    def moved(clip):
        model = tiny_model(0)
        before = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
        config = TrainingConfig(
            optimizer=OptimizerConfig(clip=clip, weight_decay=0, learning_rate=1e-3),
            schedule=ScheduleConfig(warmup=0, decay=0),
        )
        values = train(
            model,
            NextToken(),
            ExampleSource(random_examples(1), 4, 40, 2, 0),
            1,
            config,
            make_context(tmp_path / f"{clip}"),
        )
        after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        return float((after - before).abs().max()), values["gradient_norm"]

    free, norm = moved(1e9)
    # AdamW divides by the gradient's size, so a cut shows only where the gradient falls far below its epsilon, 1e-8:
    # then the step is the gradient over epsilon, here at most a thousandth of the learning rate.
    cut, reported = moved(1e-11)
    assert free == pytest.approx(1e-3, rel=0.01) and cut < 1.1e-6
    # What is reported is the norm before the cut.
    assert reported == pytest.approx(norm) and norm > 0.1


@given(steps=st.integers(5, 400), warmup=st.floats(0, 0.4), decay=st.floats(0, 0.5), final=st.floats(0, 1))
def test_the_schedule_rises_stays_and_falls(steps, warmup, decay, final):
    schedule = ScheduleConfig(warmup=warmup, decay=decay, final=final)
    factors = [schedule_factor(step, steps, schedule) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@given(
    shares=st.dictionaries(st.sampled_from("abcd"), st.floats(0.05, 1), min_size=1),
    per_step=st.integers(1, 40),
    steps=st.integers(1, 30),
)
def test_families_keep_their_proportions_over_any_run(shares, per_step, steps):
    sizes = dict.fromkeys(shares, 1200)  # as many as the longest run draws
    drawn = [item for step in range(steps) for item in set_indices(sizes, shares, per_step, step, 3)]
    assert len(drawn) == per_step * steps
    for name, share in shares.items():
        count = sum(family == name for family, _ in drawn)
        part = share / sum(shares.values())
        assert abs(count - part * len(drawn)) <= 0.501 + part * len(shares) / 2
        indices = [index for family, index in drawn if family == name]
        assert len(set(indices)) == len(indices)


@given(parts=st.lists(st.floats(0.01, 1), min_size=1, max_size=6), count=st.integers(0, 3000))
def test_places_add_up_and_are_never_taken_back(parts, count):
    parts = [part / sum(parts) for part in parts]
    here, there = apportion(parts, count), apportion(parts, count + 1)
    assert sum(here) == count
    assert sorted(b - a for a, b in zip(here, there, strict=True)) == [0] * (len(parts) - 1) + [1]


def test_pairs_stay_together():
    pairs = [(Example([10, i], [0, 1]), Example([11, i], [0, 1])) for i in range(20, 30)]
    batch = PairSource(pairs, 4, seed=0).next(0)[0]
    for number in range(4):
        chosen = batch.tokens_BT[batch.sequences_BT == 2 * number].tolist()
        rejected = batch.tokens_BT[batch.sequences_BT == 2 * number + 1].tolist()
        assert (chosen[0], rejected[0]) == (10, 11) and chosen[1] == rejected[1]


def test_pairs_split_over_batches_are_the_same_pairs():
    pairs = [(Example([10, i] + [12] * i, [0.0, 1.0] + [1.0] * i), Example([11, i], [0.0, 1.0])) for i in range(20, 30)]
    source, whole = PairSource(pairs, 5, seed=0, rows_per_batch=2), PairSource(pairs, 5, seed=0)
    batches = source.next(1)
    assert [batch.tokens_BT.shape[0] for batch in batches] == [2, 2, 1]
    seen = [int(row[1]) for batch in batches for row in batch.tokens_BT]
    assert sorted(seen) == sorted(int(row[1]) for row in whole.next(1)[0].tokens_BT)
    assert seen == sorted(seen, reverse=True)
