"""What the loss sees: only what the policy chose, with the log-probs a fresh forward pass gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.grading.grade import Grade
from loopline.inference.engine import Completion
from loopline.rl.collect import Memory
from loopline.rl.examples import build_examples, example_of, score_examples
from loopline.rl.explain import StepFacts
from loopline.rl.group import row_of
from loopline.rl.mismatch import Mismatch, compare_logprobs, measure_mismatch
from loopline.rl.objective import GRPO
from loopline.training.batch import Example, build_batch, pack
from loopline.training.loop import accumulate
from tests.rl.support import CONFIG, make_collector, make_group, policy
from tests.support_model import tiny_model


def answer(tokens, forced, finish="stop"):
    """A completion in which the engine wrote some tokens itself."""
    return Completion(tokens, [-0.5 - 0.1 * n for n in range(len(tokens))], finish, 0, forced=forced)


def group_of(*completions, rewards):
    advantages = [reward - sum(rewards) / len(rewards) for reward in rewards]
    grades = [Grade(reward) for reward in rewards]
    return make_group(completions, grades, rewards, advantages)


def gradient(model, examples, temperature=1.0, rows=2):
    model.zero_grad()
    _, metrics = accumulate(model, GRPO(0.2, 0.2, temperature), pack(examples, 64, rows))
    return torch.cat([p.grad.reshape(-1).clone() for p in model.parameters()]), metrics


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
def test_tokens_the_engine_forced_are_read_but_never_learnt(normalizer):
    config = CONFIG.model_copy(update={"normalizer": normalizer})
    one = answer([20, 21, 7, 22, 1], [False, False, True, False, False])
    other = answer([23, 24, 1], [False] * 3)
    examples = build_examples([group_of(one, other, rewards=[1.0, 0.0])], config)
    assert [weight > 0 for weight in examples[0].weights] == [False] * 3 + [True, True, False, True, True]
    assert examples[0].extras["advantages"][5] == examples[0].extras["old_logprobs"][5] == 0
    assert [e.scalars["normalizer"] for e in examples] == {"token": [4, 3], "sequence": [1, 1], "constant": [6, 6]}[
        normalizer
    ]
    if normalizer == "sequence":
        assert examples[0].weights[3] == pytest.approx(1 / 4)
    # Whatever probability the forced token has, the gradient with respect to its own score is the others' alone.
    model = tiny_model(2)
    seen, _ = gradient(model, examples)
    wild = [
        Example(
            e.tokens,
            e.weights,
            {
                name: [v if w else 9.0 for v, w in zip(values, e.weights, strict=True)]
                for name, values in e.extras.items()
            },
            e.scalars,
        )
        for e in examples
    ]
    assert torch.equal(gradient(model, wild)[0], seen)


def test_forced_tokens_are_counted_and_the_finish_is_kept():
    group = group_of(
        answer([20, 7, 1], [False, True, False], "stop"), answer([20], [True], "length"), rewards=[1.0, 0.0]
    )
    facts = StepFacts.of([group])
    assert facts.forced == 2 and facts.truncated == 0.5
    assert [output["finish"] for output in row_of(0, group)["outputs"]] == ["stop", "length"]
    # A sample of forced tokens alone teaches nothing, and is no example.
    assert len(build_examples([group], CONFIG)) == 1


@settings(max_examples=15)
@given(
    finishes=st.lists(st.sampled_from(["stop", "length"]), min_size=2, max_size=5),
    normalizer=st.sampled_from(["token", "sequence", "constant"]),
)
def test_truncated_answers_leave_loss_entropy_and_kl_alike(finishes, normalizer):
    config = CONFIG.model_copy(update={"normalizer": normalizer, "mask_truncated": True})
    rewards = [float(number % 2) for number in range(len(finishes))]
    answers = [answer([20 + n, 30 + n, 1], [False] * 3, finish) for n, finish in enumerate(finishes)]
    group = group_of(*answers, rewards=rewards)
    masked = build_examples([group], config)
    assert len(masked) == finishes.count("stop")
    if not masked:
        return
    # The same step without those answers, their rewards still in the mean: nothing is left of them anywhere.
    whole = [
        example_of([3, 50, 4, *a.token_ids], [False] * 3 + [True] * 3, [0.0] * 3 + a.logprobs, advantage, config)
        for a, advantage, finish in zip(answers, group.advantages, finishes, strict=True)
        if finish == "stop"
    ]
    model = tiny_model(2)
    ours, theirs = gradient(model, masked), gradient(model, whole)
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1] == pytest.approx(theirs[1])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_stored_log_probs_are_those_of_a_fresh_forward_pass(tokenizer, graders, temperature):
    config = CONFIG.model_copy(update={"temperature": temperature, "drop_zero_signal": False})
    model = policy()
    rollout, _ = make_collector(tokenizer, graders, model, config).collect(0, 0, Memory())
    examples = build_examples(rollout.groups, config)
    scores = score_examples(model, examples, temperature, 40, 3)
    for example, found in zip(examples, scores, strict=True):
        assert found == pytest.approx(list(example.extras["old_logprobs"]), abs=2e-5)
        # And equal to the plain definition, one sequence at a time.
        logits = model.logits(model(torch.tensor([list(example.tokens)])))[0] / temperature
        plain = logits.detach().log_softmax(-1)[:-1].gather(1, torch.tensor(list(example.tokens))[1:, None])[:, 0]
        for place, weight in enumerate(example.weights):
            assert found[place] == (pytest.approx(float(plain[place - 1]), abs=2e-5) if weight else 0)


def test_scoring_changes_neither_the_model_nor_its_mode(tokenizer, graders):
    model = policy().train()
    examples = [Example([20, 30, 40], [0.0, 1.0, 1.0], {"old_logprobs": [0, 0, 0]})]
    score_examples(model, examples, 1.0)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert score_examples(model, [], 1.0) == []


def test_mismatch_is_rounding_for_equal_weights_and_visible_for_others(tokenizer, graders):
    model = policy()
    rollout, _ = make_collector(tokenizer, graders, model).collect(0, 0, Memory())
    assert rollout.mismatch.tokens > 0 and rollout.mismatch.largest < 2e-5 and rollout.mismatch.kl < 1e-9
    hot = CONFIG.model_copy(update={"temperature": 1.3})
    assert measure_mismatch(model, rollout.groups, hot, 4).largest > 1e-2, "a wrong temperature would go unnoticed"
    with torch.no_grad():
        model.embedding.weight.mul_(1.1)
    stale = measure_mismatch(model, rollout.groups, CONFIG, 4)
    assert stale.kl > 1e-5 and stale.largest > 1e-2
    assert measure_mismatch(model, rollout.groups, CONFIG, 0) == measure_mismatch(model, [], CONFIG, 4) == Mismatch()


def test_with_learning_rate_zero_the_mismatch_stays_flat(tokenizer, graders):
    collector = make_collector(tokenizer, graders)
    memory, found = Memory(), []
    for number in range(6):
        rollout, memory = collector.collect(number, number, memory)
        found.append(rollout.mismatch.largest)
    assert max(found) < 2e-5


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), max_size=20))
def test_mismatch_is_never_negative_and_zero_only_for_equal_log_probs(pairs):
    found = compare_logprobs([a for a, _ in pairs], [b for _, b in pairs])
    assert found.kl >= 0 and found.largest == max((abs(a - b) for a, b in pairs), default=0)
    assert (found.largest == 0) == all(a == b for a, b in pairs)


def test_packing_changes_no_score(tokenizer, graders):
    config = CONFIG.model_copy(update={"drop_zero_signal": False})
    model = policy()
    rollout, _ = make_collector(tokenizer, graders, model).collect(0, 0, Memory())
    examples = build_examples(rollout.groups, config)
    alone = [score_examples(model, [example], 1.0)[0] for example in examples]
    for one, other in zip(score_examples(model, examples, 1.0, 100, 2), alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert build_batch([[examples[0]]]).token_count == len(examples[0].tokens)
