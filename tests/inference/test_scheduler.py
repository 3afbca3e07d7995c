"""Continuous batching against one row at a time, and against a forward pass without any cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.inference.compiled_step import CompiledStep
from loopline.inference.engine import Request, Sampling, TorchEngine
from loopline.inference.scheduler import Scheduler
from tests.support_model import tiny_model, tiny_tokenizer

STOPS = tuple(range(10, 70))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model():
    return tiny_model(5)


def logprobs_of(model, prompt, completion, temperature=1.0):
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([[*prompt, *completion]])))[0] / temperature
    scores = logits.log_softmax(-1)
    return [float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]


requests_strategy = st.lists(
    st.tuples(st.lists(st.integers(10, 299), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 24)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=20)
@given(wanted=requests_strategy, size=st.integers(1, 12), temperature=st.sampled_from([0.0, 0.7, 1.0]))
def test_any_number_of_slots_gives_what_each_row_gives_alone(model, tokenizer, wanted, size, temperature):
    requests = [
        Request(prompt, Sampling(limit, temperature=temperature, n=n, stop_token_ids=STOPS), seed=number)
        for number, (prompt, n, limit) in enumerate(wanted)
    ]
    found: dict[tuple[int, int], list[int]] = {}
    for index, done in TorchEngine(model, tokenizer, size).generate_stream(requests):
        assert (index, done.number) not in found
        found[index, done.number] = done.token_ids
        prompt = requests[index].prompt
        expected = logprobs_of(model, prompt, done.token_ids, temperature or 1.0)
        assert done.logprobs == pytest.approx(expected, abs=2e-4)
    assert len(found) == sum(n for _, n, _ in wanted)
    alone = TorchEngine(model, tokenizer, 1)
    for index, request in enumerate(requests):
        for completion in alone.generate([request.prompt], request.sampling, [index])[0]:
            assert found[index, completion.number] == completion.token_ids


def test_a_free_slot_is_taken_in_the_next_step_and_the_batch_shrinks_at_the_end(model, tokenizer):
    scheduler = Scheduler(TorchEngine(model, tokenizer), 6)
    for key in range(10):
        scheduler.add(key, Request([20 + key, 30], Sampling(30, n=2, stop_token_ids=STOPS), seed=key))
    waited = []
    while scheduler.busy:
        waiting = scheduler.unseated
        ended = len(scheduler.step())
        # Rows that ran in this step, those that it ended included.
        running = scheduler.active + ended
        assert running == 6 or scheduler.unseated == 0
        waited.append(waiting)
        assert scheduler.slots.running <= 6
    assert waited[0] == 20 and scheduler.active == 0


def test_each_prompt_is_computed_once_for_its_samples(model, tokenizer, monkeypatch):
    engine = TorchEngine(model, tokenizer, 4)
    computed = []
    real = CompiledStep.prefill
    monkeypatch.setattr(
        CompiledStep, "prefill", lambda step, prompts: computed.extend(map(tuple, prompts)) or real(step, prompts)
    )
    prompts = [[20 + i, 40, 60] for i in range(5)]
    engine.generate(prompts, Sampling(10, n=6))
    assert sorted(computed) == sorted(map(tuple, prompts))


def test_what_a_row_samples_is_the_same_bits_in_any_batch(model, tokenizer):
    prompts = [[20 + i % 200, 30 + i % 7] * (1 + i % 9) for i in range(96)]
    sampling = Sampling(40, n=2, stop_token_ids=tuple(range(10, 30)))
    together = TorchEngine(model, tokenizer, 69).generate(prompts, sampling)
    assert TorchEngine(model, tokenizer, 8).generate(prompts, sampling) == together
    for number in (0, 50):
        assert TorchEngine(model, tokenizer, 1).generate([prompts[number]], sampling, [number])[0] == together[number]


def test_the_room_of_a_row_depends_on_its_own_prompt_only(model, tokenizer):
    limit = model.config.max_position_embeddings
    short, long = [40, 41], list(range(50, 50 + limit - 3))
    sampling = Sampling(limit, temperature=0, stop_token_ids=())
    groups = TorchEngine(model, tokenizer).generate([short, long], sampling)
    assert [len(group[0].token_ids) for group in groups] == [limit - 2, 3]


def test_requests_keep_their_own_settings_in_one_batch(model, tokenizer):
    kinds = [
        Sampling(9, temperature=0, stop_token_ids=()),
        Sampling(12, temperature=0.5, top_k=3, stop_token_ids=STOPS),
        Sampling(15, temperature=1.5, top_p=0.7, n=2),
    ]
    engine = TorchEngine(model, tokenizer)
    requests = [Request([60 + i, 70], kinds[i % 3], seed=i) for i in range(9)]
    for index, done in engine.generate_stream(requests):
        alone = engine.generate([requests[index].prompt], requests[index].sampling, [index])[0][done.number]
        assert done.token_ids == alone.token_ids and done.finish == alone.finish
        assert bool(done.kept) == (index % 3 > 0)


def test_kept_sets_hold_the_sampled_token_and_their_size(model, tokenizer):
    sampling = Sampling(10, top_k=6, top_p=0.9, n=3, keep_sets=True)
    for done in TorchEngine(model, tokenizer).generate([[33, 44]], sampling)[0]:
        mask = done.kept_mask(model.config.vocab_size)
        assert mask.sum(1).tolist() == done.kept and max(done.kept) <= 6
        assert all(mask[place, token] for place, token in enumerate(done.token_ids))
        assert len(done.kept_logmass) == len(done.token_ids) and max(done.kept_logmass) <= 0


def test_tokens_carry_the_version_that_sampled_them_and_follow_the_new_weights(model, tokenizer):
    engine = TorchEngine(tiny_model(5), tokenizer, batch_size=4, version=3)
    other = tiny_model(6).state_dict()
    requests = [Request([30 + i], Sampling(2 + 6 * (i % 2), temperature=0, stop_token_ids=())) for i in range(8)]
    done = {}
    for index, completion in engine.generate_stream(requests):
        if not done:
            engine.load(other, 4)
        done[index] = completion
    versions = {index: completion.policy_versions for index, completion in done.items()}
    assert versions[0] == [3, 3] and versions[1] == [3, 3] + [4] * 6
    assert versions[6] == [4, 4] and all(c.policy_version == c.policy_versions[0] for c in done.values())
    # What started after the change is what the new weights alone would write.
    fresh = TorchEngine(tiny_model(6), tokenizer).generate([[36]], requests[6].sampling)[0][0]
    assert done[6].token_ids == fresh.token_ids


def test_interrupting_gives_what_is_there_and_drops_the_rest(model, tokenizer):
    engine = TorchEngine(model, tokenizer, batch_size=3)
    requests = [Request([40 + i], Sampling(20, stop_token_ids=()), seed=i) for i in range(5)]
    steps = iter(range(100))
    done = dict(engine.generate_stream(requests, stop=lambda: next(steps) == 7))
    assert sorted(done) == [0, 1, 2]
    for index, completion in done.items():
        whole = engine.generate([requests[index].prompt], requests[index].sampling, [index])[0][0]
        assert completion.finish == "interrupted"
        assert completion.token_ids == whole.token_ids[:7]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(model, tokenizer):
    engine = TorchEngine(model, tokenizer)
    with pytest.raises(UserError, match="Prompt 1 has 128 tokens"):
        engine.generate([[20], [20] * 128], Sampling(4))
    with pytest.raises(UserError, match="outside the vocabulary"):
        engine.generate([[20]], Sampling(4, stop_token_ids=(300,)))
