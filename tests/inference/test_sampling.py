"""Drawing tokens, against one search over the whole cumulative distribution and a sorted reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.inference.sampling import Sampling, Scratch, draw, draw_uniforms, kept, row_generator, sample

seeds = st.integers(0, 2**32 - 1)


def random_logits(seed: int, rows: int, vocab_size: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def one_search(logits, temperature, uniforms, keep=None):
    probabilities = (logits / temperature).log_softmax(-1).exp()
    if keep is not None:
        probabilities = probabilities * keep
    cumulative = probabilities.double().cumsum(-1)
    return torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]


@settings(max_examples=40)
@given(seed=seeds, rows=st.integers(1, 9), vocab_size=st.integers(2, 400), temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_the_search_in_blocks_finds_what_one_search_finds(seed, rows, vocab_size, temperature):
    logits = random_logits(seed, rows, vocab_size)
    uniforms = draw_uniforms([seed], rows, 1)[:, 0]
    tokens, logprobs = sample(logits, Sampling(temperature=temperature), uniforms)
    assert tokens.tolist() == one_search(logits, temperature, uniforms).tolist()
    expected = (logits / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)


def test_a_number_that_rounds_up_to_everything_takes_the_last_token_with_any_mass():
    logits = torch.full((1, 130), -200.0)
    logits[0, :70] = 0.0
    almost_one = torch.tensor([1.0], dtype=torch.float64)
    assert sample(logits, Sampling(), almost_one)[0].item() == 69


def reference_kept(probabilities: list[float], top_p: float, top_k: int) -> set[int]:
    order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    found: set[int] = set()
    for token in order[: top_k or None]:
        if found and sum(probabilities[other] for other in found) >= top_p:
            break
        found.add(token)
    return found


@settings(max_examples=60)
@given(
    weights=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    # Shares that no sum of these weights can equal: which side of a tie a sum falls on is rounding.
    top_p=st.integers(1, 99).map(lambda number: (number + 0.37) / 100),
    top_k=st.integers(0, 14),
)
def test_kept_are_the_likeliest_and_of_equals_the_earlier(weights, top_p, top_k):
    probabilities = torch.tensor([weights], dtype=torch.float64)
    probabilities /= probabilities.sum()
    keep = kept(probabilities, Sampling(top_p=top_p, top_k=top_k))[0]
    found = set(torch.nonzero(keep)[:, 0].tolist())
    assert found == reference_kept(probabilities[0].tolist(), top_p, top_k)


@settings(max_examples=25)
@given(seed=seeds, top_p=st.sampled_from([0.3, 0.8, 1.0]), top_k=st.sampled_from([0, 1, 7]))
def test_log_prob_less_the_kept_mass_is_the_log_prob_among_the_kept(seed, top_p, top_k):
    sampling = Sampling(top_p=top_p, top_k=top_k, temperature=0.9)
    logits = random_logits(seed, 4, 90)
    drawn = draw(logits, sampling, draw_uniforms([seed], 4, 1)[:, 0], Scratch(90))
    if not sampling.truncates:
        assert drawn.kept_BV is None
        return
    among = (logits / 0.9).masked_fill(~drawn.kept_BV, -torch.inf).log_softmax(-1)
    expected = among.gather(1, drawn.tokens_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs_B - drawn.kept_logmass_B, expected, atol=2e-5, rtol=0)


def test_a_row_draws_from_its_own_stream_however_much_is_drawn_at_once():
    together = draw_uniforms([5, 6], 3, 40)
    assert together[4].tolist() == draw_uniforms([6], 2, 40)[1].tolist()
    stream = row_generator(6, 1)
    assert [*stream.random(7), *stream.random(33)] == together[4].tolist()


def test_scores_that_are_not_finite_are_named():
    with pytest.raises(UserError, match="not finite"):
        sample(torch.full((2, 70), torch.nan), Sampling(), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("change", [{"stop": ("",)}, {"stop": "x"}, {"thinking_budget": -1}, {"top_p": 0.0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError):
        Sampling(**change)
