"""The engine against a forward pass without any cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling, TorchEngine, draw_uniforms, sample
from tests.support_model import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return TorchEngine(tiny_model(5), tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")), batch_size=6)


def naive_logprobs(model, prompt, completion, temperature=1.0):
    tokens = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = model.logits(model(tokens))[0] / temperature
    scores = logits.log_softmax(-1)
    return [float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]


def naive_greedy(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
        if tokens[-1] == 1:
            break
    return tokens[len(prompt) :]


prompts_strategy = st.lists(st.lists(st.integers(10, 299), min_size=1, max_size=20), min_size=1, max_size=9)


@settings(max_examples=15)
@given(prompts=prompts_strategy)
def test_greedy_equals_the_naive_forward(engine, prompts):
    for prompt, group in zip(prompts, engine.generate(prompts, Sampling(12, temperature=0)), strict=True):
        assert group[0].token_ids == naive_greedy(engine.model, prompt, 12)


@settings(max_examples=15)
@given(prompts=prompts_strategy, temperature=st.sampled_from([0.5, 1.0, 1.7]), n=st.integers(1, 4))
def test_logprobs_equal_a_fresh_forward(engine, prompts, temperature, n):
    groups = engine.generate(prompts, Sampling(8, temperature=temperature, n=n))
    for prompt, group in zip(prompts, groups, strict=True):
        assert len(group) == n
        for completion in group:
            expected = naive_logprobs(engine.model, prompt, completion.token_ids, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=2e-4)


def test_a_row_does_not_depend_on_its_neighbours(engine):
    prompts = [[20 + i, 40, 60 + 2 * i][: 1 + i % 3] for i in range(8)]
    together = engine.generate(prompts, Sampling(10, n=2), seeds=list(range(8)))
    for number, prompt in enumerate(prompts):
        alone = engine.generate([prompt], Sampling(10, n=2), seeds=[number])[0]
        assert [c.token_ids for c in alone] == [c.token_ids for c in together[number]]


def test_finished_rows_stop_and_say_so(engine):
    stops = tuple(range(10, 200))
    groups = engine.generate([[50], [60], [70]], Sampling(40, n=3, stop_token_ids=stops))
    for completion in (c for group in groups for c in group):
        assert all(token not in stops for token in completion.token_ids[:-1])
        assert (completion.finish == "stop") == (completion.token_ids[-1] in stops)
        assert completion.finish == "stop" or len(completion.token_ids) == 40


def test_streaming_gives_what_generating_gives(engine):
    sampling = Sampling(15, seed=7)
    whole = engine.generate([[30, 31, 32]], sampling)[0][0]
    streamed = list(engine.stream([30, 31, 32], sampling))
    assert [token for token, _ in streamed] == whole.token_ids
    assert [logprob for _, logprob in streamed] == pytest.approx(whole.logprobs, abs=1e-5)


def test_new_weights_are_what_samples_next(engine):
    other = tiny_model(6)
    fresh = TorchEngine(tiny_model(5), engine.tokenizer)
    before = fresh.generate([[33, 34]], Sampling(6, temperature=0))[0][0]
    fresh.load(other.state_dict(), version=4)
    after = fresh.generate([[33, 34]], Sampling(6, temperature=0))[0][0]
    assert (before.policy_version, after.policy_version) == (0, 4)
    assert after.token_ids == naive_greedy(other, [33, 34], 6)


def test_prompts_without_room_are_refused(engine):
    with pytest.raises(UserError, match="Prompt 1 has 128 tokens"):
        engine.generate([[20], [20] * 128], Sampling(4))


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(40_000, 4)
    tokens, logprobs = sample(logits, Sampling(temperature=0.8), draw_uniforms([11], 1, 40_000)[0])
    expected = (logits[0] / 0.8).softmax(-1)
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(logprobs.exp(), expected[tokens])


@given(uniform=st.floats(0, 1, exclude_max=True), top_p=st.floats(0.05, 1), top_k=st.integers(0, 5))
def test_only_kept_tokens_are_ever_sampled(uniform, top_p, top_k):
    logits = torch.tensor([[0.3, 2.0, -0.5, 1.1, 0.0]])
    token, _ = sample(logits, Sampling(top_p=top_p, top_k=top_k), torch.tensor([uniform], dtype=torch.float64))
    order = logits[0].argsort(descending=True).tolist()
    probabilities = logits[0].softmax(-1)
    allowed, mass = [], 0.0
    for rank, candidate in enumerate(order):
        if (top_k and rank >= top_k) or mass >= top_p:
            break
        allowed.append(candidate)
        mass += float(probabilities[candidate])
    # A sum that lands on the threshold may be rounded either way.
    assert int(token) in allowed or abs(mass - top_p) < 1e-6
