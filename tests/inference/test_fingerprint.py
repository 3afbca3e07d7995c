"""Weights that did not arrive as they were sent are noticed."""

import pytest
import torch

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling, TorchEngine
from loopline.inference.fingerprint import fingerprint
from tests.support_model import tiny_model, tiny_tokenizer


@pytest.fixture
def engine(tmp_path):
    return TorchEngine(tiny_model(1), tiny_tokenizer(tmp_path))


def test_loading_takes_over_every_bit_and_the_version(engine):
    other = tiny_model(2)
    engine.load(other.state_dict(), 7)
    assert engine.fingerprint() == fingerprint(other.state_dict())
    done = engine.generate([[30]], Sampling(5))[0][0]
    assert done.policy_version == 7 and set(done.policy_versions) == {7}
    assert done == TorchEngine(other, engine.tokenizer, version=7).generate([[30]], Sampling(5))[0][0]


def test_a_skipped_sync_is_noticed(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "load_state_dict", lambda state: None)
    with pytest.raises(UserError, match="does not have version 2"):
        engine.load(tiny_model(2).state_dict(), 2)
    assert engine.version == 0


def test_a_partial_sync_is_noticed(engine, monkeypatch):
    real = engine.model.load_state_dict

    def partly(state):
        name = "embedding.weight"
        return real({**state, name: engine.model.state_dict()[name].clone()})

    monkeypatch.setattr(engine.model, "load_state_dict", partly)
    with pytest.raises(UserError, match="fingerprint"):
        engine.load(tiny_model(2).state_dict(), 2)


def test_a_missing_tensor_and_other_weights_than_the_senders_are_noticed(engine):
    state = tiny_model(2).state_dict()
    sent = fingerprint(state)
    with pytest.raises(UserError, match="does not fit"):
        engine.load({name: state[name] for name in sorted(state)[1:]}, 2)
    changed = {name: value + 1e-7 if name == "norm.weight" else value for name, value in state.items()}
    with pytest.raises(UserError, match="fingerprint"):
        engine.load(changed, 2, expected=sent)


def test_one_bit_a_name_a_shape_or_a_type_changes_it():
    weights = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    known = fingerprint(weights)
    assert fingerprint({"b": torch.zeros(2), "a": torch.arange(6.0)}) == known
    flipped = torch.arange(6.0)
    flipped.view(torch.int32)[3] ^= 1
    others = [
        {"a": flipped, "b": weights["b"]},
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].view(2, 3), "b": weights["b"]},
        {"a": weights["a"], "b": torch.zeros(2, dtype=torch.int32)},
    ]
    assert len({known, *map(fingerprint, others)}) == 5
