"""An adapter under reinforcement: rollouts follow its merged weights, the base stays, a resumed run goes on."""

import pytest
import torch

from loopline.model.adapter_config import LoRAConfig
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.posttrain.config import GRPOConfig
from loopline.rl.objective import GRPO
from loopline.store.context import Context
from loopline.training.config import OptimizerConfig, TrainingConfig, TrainRuntime
from loopline.training.loop import train
from loopline.training.policy import load_policy, policy_weights, save_policy
from tests.rl.support import CONFIG, ParityGraders, make_source, policy
from tests.support_model import tiny_tokenizer

pytest.importorskip("peft")
RL = CONFIG.model_copy(update={"drop_zero_signal": False})
SETTINGS = TrainingConfig(
    optimizer=OptimizerConfig(learning_rate=0.02, weight_decay=0.0), runtime=TrainRuntime(save_every=1)
)


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start"
    tiny_tokenizer(path / "tokenizer")
    save_checkpoint(policy(), path / "tokenizer", path)
    return path


def reinforce(start, tokenizer, folder, steps, stop=None):
    """Train an adapter; with `stop` the run ends there and a new one goes on from its state."""
    model = load_policy(start, LoRAConfig(rank=2, alpha=4.0))
    ctx = Context("grpo", folder / "out", folder / "state", 0, 1)
    with ParityGraders() as graders:
        engine_model = load_model(start).eval()
        source = make_source(tokenizer, graders, folder / "record", engine_model, RL, source={"trainer": model})
        train(model, GRPO.from_config(RL), source, stop or steps, SETTINGS, ctx)
        mismatch = [source.facts.mismatch_max]
    if stop is not None:
        return reinforce(start, tokenizer, folder, steps)
    return model, engine_model, mismatch, source


def test_rollouts_follow_the_adapter_and_the_base_stays(start, tokenizer, tmp_path):
    model, sampled, mismatch, source = reinforce(start, tokenizer, tmp_path, 3)
    merged, base = policy_weights(model, sampled), load_model(start).state_dict()
    assert float((merged["blocks.0.attention.qkv.weight"] - base["blocks.0.attention.qkv.weight"]).abs().max()) > 1e-3
    assert torch.equal(merged["embedding.weight"], base["embedding.weight"])
    # The engine sampled the last rollout with the weights of two updates, not those of the start or of the end.
    before = sampled.state_dict()["blocks.0.attention.qkv.weight"]
    assert not torch.equal(before, base["blocks.0.attention.qkv.weight"])
    assert not torch.equal(before, merged["blocks.0.attention.qkv.weight"])
    assert mismatch[-1] < 1e-4
    assert source.engine.version == 2


def test_a_sampler_that_never_got_the_adapter_is_noticed(start, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("loopline.rl.rollout.policy_weights", lambda model, like: like.state_dict())
    *_, mismatch, _ = reinforce(start, tokenizer, tmp_path, 3)
    assert mismatch[-1] > 1e-2


def test_what_is_saved_is_the_merged_model_and_the_adapter(start, tokenizer, tmp_path):
    model, sampled, _, _ = reinforce(start, tokenizer, tmp_path, 2)
    save_policy(model, start, tmp_path / "done")
    found, expected = load_model(tmp_path / "done").state_dict(), policy_weights(model, sampled)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert (tmp_path / "done" / "adapter" / "adapter_config.json").exists()


def test_a_run_that_was_cut_short_ends_in_the_same_bytes(start, tokenizer, tmp_path):
    whole, *_ = reinforce(start, tokenizer, tmp_path / "a", 4)
    resumed, *_ = reinforce(start, tokenizer, tmp_path / "b", 4, stop=2)
    for (name, one), (_, other) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_ppo_with_an_adapter_is_refused():
    with pytest.raises(ValueError, match="leave adapter out"):
        GRPOConfig(algorithm="ppo", adapter=LoRAConfig())
