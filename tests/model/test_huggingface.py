"""Other architectures through `transformers`: logits, packing, cached decoding and sampling are the module's own."""

import builtins

import pytest
import torch
import transformers
from safetensors.torch import load_file

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.huggingface import HuggingFaceModel, load_huggingface
from loopline.training.batch import Example, build_batch
from tests.model.families import FAMILIES, OTHERS, SIZES, save_random

others = pytest.mark.parametrize("kind", OTHERS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("others")
    return {name: (root / str(k), save_random(make, root / str(k))) for k, (name, make) in enumerate(OTHERS.items())}


def random_tokens(*shape, seed=0):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


@others
def test_logits_equal_those_of_the_module(checkpoints, kind):
    path, peer = checkpoints[kind]
    model = load_model(path).train()
    assert isinstance(model, HuggingFaceModel)
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        hidden = model(tokens)
        torch.testing.assert_close(model.logits(hidden), peer(tokens).logits, atol=1e-6, rtol=1e-6)
        plain = torch.equal(model.logits(hidden), hidden @ model.output_weight.T)
    assert plain or not model.plain_output
    assert hidden.shape == (2, 40, model.config.hidden_size)
    assert model.output_weight.shape == (model.config.vocab_size, model.config.hidden_size)


@others
def test_packed_sequences_give_what_each_gives_alone(checkpoints, kind):
    model = load_model(checkpoints[kind][0])
    sequences = [random_tokens(length, seed=length) for length in (11, 6, 9)]
    batch = build_batch(
        [[Example(s.tolist(), [1.0] * len(s)) for s in sequences[:2]], [Example(sequences[2].tolist(), [1.0] * 9)]]
    )
    with torch.no_grad():
        packed = model(batch.tokens_BT, positions_BT=batch.positions_BT, mask=batch.mask())
        for number, tokens in enumerate(sequences):
            torch.testing.assert_close(
                packed[batch.sequences_BT == number], model(tokens[None])[0], atol=1e-5, rtol=1e-4
            )


@others
def test_greedy_sampling_equals_generate(checkpoints, kind):
    path, peer = checkpoints[kind]
    engine = TorchEngine(load_model(path).eval(), None)
    prompts = [random_tokens(length, seed=length).tolist() for length in (9, 3, 6)]
    groups = engine.generate(prompts, Sampling(max_new_tokens=20, temperature=0.0, stop_token_ids=(1,)))
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        expected = peer.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=1, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert completion.token_ids == expected


@pytest.mark.parametrize("kind", ["gpt2", "gemma 3, sliding"])
def test_sampled_logprobs_are_those_of_a_fresh_forward(checkpoints, kind):
    model = load_model(checkpoints[kind][0]).eval()
    prompt = random_tokens(5).tolist()
    (group,) = TorchEngine(model, None).generate(
        [prompt], Sampling(max_new_tokens=16, n=4, seed=3, stop_token_ids=(1,))
    )
    for completion in group:
        tokens = torch.tensor([prompt + completion.token_ids])
        with torch.no_grad():
            logprobs = model.logits(model(tokens))[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, tokens[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma 2, sliding"])
def test_trained_weights_save_under_the_modules_names(checkpoints, tmp_path, kind):
    path, _ = checkpoints[kind]
    model = load_model(path)
    tokens = random_tokens(2, 12)
    torch.nn.functional.cross_entropy(model.logits(model(tokens)).flatten(0, 1), tokens.flatten()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    save_checkpoint(model, path, tmp_path / "out")
    stored, written = (load_file(p / "model.safetensors") for p in (path, tmp_path / "out"))
    assert sorted(stored) == sorted(written)
    assert any(not torch.equal(stored[name], written[name]) for name in stored)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model.logits(model(tokens)), atol=1e-6, rtol=1e-6)
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("family", ["llama 3", "qwen3 experts"])
def test_families_of_the_decoder_can_go_through_transformers_too(tmp_path, family):
    save_random(FAMILIES[family], tmp_path)
    ours, theirs = load_model(tmp_path), load_huggingface(tmp_path)
    tokens = random_tokens(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens), atol=2e-5, rtol=1e-4)


def test_an_architecture_without_positions_is_refused_where_it_would_compute_something_else(tmp_path):
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    save_random(lambda: config, tmp_path)
    model = load_model(tmp_path)
    tokens = random_tokens(1, 8)
    assert model(tokens).shape == (1, 8, 32)
    with pytest.raises(UserError, match=r"bloom.*packed rows"):
        model(tokens, positions_BT=torch.arange(8)[None], mask=torch.ones(8, 8, dtype=torch.bool).tril()[None, None])


def test_large_hidden_states_are_no_sign_of_a_mask_that_is_not_kept(tmp_path):
    """Trained models have single states of 50 and more, whose rounding passes an absolute tolerance."""
    sizes = SIZES | {"hidden_size": 256, "num_hidden_layers": 6}
    peer = save_random(lambda: transformers.LlamaConfig(**sizes), tmp_path)
    with torch.no_grad():
        peer.model.norm.weight.mul_(1e6)
    peer.save_pretrained(tmp_path)
    assert load_huggingface(tmp_path).abilities.packs


def test_a_recurrent_architecture_has_no_cache_of_keys_and_values(tmp_path):
    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
    save_random(lambda: config, tmp_path)
    model = load_model(tmp_path)
    with pytest.raises(UserError, match="does not keep keys and values"):
        model.new_cache(1, 8)


def test_without_transformers_the_error_names_the_extra(checkpoints, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **named):
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"gpt2.*Fix: pip install 'loopline\[hf\]'"):
        load_model(checkpoints["gpt2"][0])


def test_the_decoders_families_need_no_transformers(tmp_path):
    import subprocess
    import sys

    save_random(lambda: transformers.Qwen2Config(**SIZES), tmp_path)
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import pathlib\nfrom loopline.model.checkpoint import load_model\n"
        "print(type(load_model(pathlib.Path(sys.argv[1]))).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Decoder"
