"""Top-k and top-p in rollouts: trainer and sampler score every token among the words it was chosen from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling, TorchEngine
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.examples import completion_example, score_examples
from loopline.rl.objective import GRPO
from loopline.training.batch import build_batch
from loopline.training.loop import accumulate
from loopline.training.objectives import score_tokens
from loopline.training.prefixes import pack_shared
from tests.rl.support import CONFIG, ParityGraders, make_source, policy


def sampled(tokenizer, sampling, prompts=((20, 21, 22), (30, 31, 32, 33))):
    model = policy(5)
    with torch.no_grad():
        # Sharper than random weights, so that the sets differ in size.
        model.embedding.weight.mul_(20)
    engine = TorchEngine(model, tokenizer)
    groups = engine.generate([list(prompt) for prompt in prompts], sampling)
    config = PolicyGradientConfig(temperature=sampling.temperature)
    examples = [
        completion_example(prompt, completion, (-1.0) ** completion.number * 0.7, config)
        for prompt, group in zip(prompts, groups, strict=True)
        for completion in group
    ]
    return model, groups, examples


@settings(max_examples=12)
@given(
    top_p=st.floats(0.1, 0.95),
    top_k=st.sampled_from([0, 1, 3, 40]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    seed=st.integers(0, 50),
)
def test_the_trainer_scores_what_the_sampler_chose_from(tokenizer, top_p, top_k, temperature, seed):
    sampling = Sampling(9, temperature=temperature, top_p=top_p, top_k=top_k, n=3, seed=seed, keep_sets=True)
    model, groups, examples = sampled(tokenizer, sampling)
    found = score_examples(model, examples, temperature)
    for example, scores in zip(examples, found, strict=True):
        torch.testing.assert_close(
            torch.tensor(scores), torch.tensor(example.extras["old_logprobs"]), atol=2e-5, rtol=1e-4
        )
    if top_k == 1:
        assert all(abs(value) < 1e-6 for example in examples for value in example.extras["old_logprobs"])
    whole = [completion.logprobs for group in groups for completion in group]
    assert all(
        among >= plain - 1e-6
        for example, plains in zip(examples, whole, strict=True)
        for among, plain in zip(example.extras["old_logprobs"][-len(plains) :], plains, strict=True)
    )


def reference_gradient(model, examples, groups, prompts, temperature):
    """Of -sum A log p among the kept words / tokens, one sample at a time, from plain logits in float64."""
    total, count = 0.0, 0
    rows = [completion for group in groups for completion in group]
    lengths = [len(prompt) for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    for example, completion, start in zip(examples, rows, lengths, strict=True):
        tokens = torch.tensor(example.tokens)[None]
        logits = model.logits(model(tokens)[0, start - 1 : -1]).double() / temperature
        mask = torch.from_numpy(completion.kept_mask(logits.shape[-1]))
        kept = torch.where(mask, logits.exp(), 0.0)
        chosen = logits.gather(-1, tokens[0, start:, None]).exp()[:, 0] / kept.sum(-1)
        total = total - (example.extras["advantages"][-1] * chosen.log()).sum()
        count += len(chosen)
    (total / count).backward()


def gradients(model):
    found = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_is_that_of_the_distribution_that_was_sampled_from(tokenizer, shared):
    prompts = ((20, 21, 22), (30, 31, 32, 33))
    sampling = Sampling(9, temperature=0.8, top_p=0.8, top_k=60, n=4, seed=3, keep_sets=True)
    model, groups, examples = sampled(tokenizer, sampling, prompts)
    sizes = {size for group in groups for completion in group for size in completion.kept}
    assert len(sizes) > 3
    batches = pack_shared(examples, 64, 4, 256) if shared else [build_batch([examples[:3], examples[3:]])]
    assert any(batch.branches is not None for batch in batches) == shared
    objective = GRPO(temperature=0.8)
    accumulate(model, objective, batches)
    found = gradients(model)
    reference_gradient(model, examples, groups, prompts, 0.8)
    expected = gradients(model)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)
    # The loss over all words is another one.
    plain = [type(e)(e.tokens, e.weights, e.extras, e.scalars) for e in examples]
    accumulate(model, objective, [build_batch([plain])])
    assert (gradients(model) - expected).norm() > 0.05 * expected.norm()


def test_blocks_give_the_same_scores_and_entropy(tokenizer):
    sampling = Sampling(9, top_p=0.7, n=4, seed=1, keep_sets=True)
    model, groups, examples = sampled(tokenizer, sampling)
    batch = build_batch([examples])
    whole = score_tokens(model, batch, with_entropy=True)
    blocks = score_tokens(model, batch, with_entropy=True, limit=model.config.vocab_size * 5)
    torch.testing.assert_close(blocks.logprobs_M, whole.logprobs_M)
    torch.testing.assert_close(blocks.entropy_M, whole.entropy_M)
    sizes = torch.tensor([size for group in groups for completion in group for size in completion.kept])
    assert bool((whole.entropy_M <= sizes.log() + 1e-5).all()) and bool(whole.entropy_M.isfinite().all())


def test_rollouts_with_top_p_match_the_trainer_and_without_the_sets_they_would_not(tokenizer, tmp_path):
    config = CONFIG.model_copy(update={"top_p": 0.6, "top_k": 100, "drop_zero_signal": False})
    model = policy(5)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    with ParityGraders() as graders, make_source(tokenizer, graders, tmp_path, model, config) as source:
        batches = source.next(0)
        assert source.facts.mismatch_max < 1e-4
        plain = 0.0
        for batch in batches:
            kept = score_tokens(model, batch)
            all_words = score_tokens(model, type(batch)(**{**vars(batch), "kept_BTW": None}))
            old = batch.extras["old_logprobs"].reshape(-1)[kept.index_M]
            assert float((kept.logprobs_M.detach() - old).abs().max()) < 1e-4
            plain = max(plain, float((all_words.logprobs_M - old).abs().max()))
        assert plain > 0.1
        # What is saved holds the sets: a resumed run trains on the same ones.
        other = make_source(tokenizer, graders, tmp_path, model, config)
        other.load_state_dict(source.state_dict())


def test_a_sample_without_its_sets_is_refused(tokenizer):
    engine = TorchEngine(policy(), tokenizer)
    ((completion,),) = engine.generate([[20, 21]], Sampling(5, top_p=0.5))
    with pytest.raises(UserError, match="keep_sets"):
        completion_example([20, 21], completion, 1.0, CONFIG)
    assert np.isfinite(completion.kept_logmass).all()
