"""Score models: the layout of `...ForSequenceClassification`, with equal scores on both sides."""

import json

import pytest
import torch
import transformers

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.heads import ScoreModel
from tests.model.families import FAMILIES, OTHERS, save_random
from tests.support_model import tiny_model

KINDS = {name: FAMILIES[name] for name in ("llama 3", "qwen2", "qwen3", "qwen3 some experts")} | {
    name: OTHERS[name] for name in ("gpt2", "mistral, sliding")
}


def scored(base, outputs):
    generator = torch.Generator().manual_seed(7)
    return ScoreModel(base, outputs, torch.randn(outputs, base.config.hidden_size, generator=generator)).eval()


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_a_score_model_with_equal_scores(tmp_path, kind, outputs):
    save_random(KINDS[kind], tmp_path / "base")
    model = scored(load_model(tmp_path / "base"), outputs)
    save_checkpoint(model, tmp_path / "base", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert set(json.loads((tmp_path / "base" / "config.json").read_text())) <= set(config)
    peer, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert peer.config.num_labels == outputs
    peer.config.pad_token_id = 0
    tokens = torch.randint(1, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.score(model(tokens))[:, -1]
        torch.testing.assert_close(ours, peer.eval()(tokens).logits, atol=2e-5, rtol=1e-5)


def test_a_score_model_of_transformers_loads_here_and_saves_back(tmp_path):
    torch.manual_seed(3)
    config = FAMILIES["qwen3"]()
    config.num_labels, config.pad_token_id = 3, 0
    peer = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    peer.save_pretrained(tmp_path / "peer")
    model = load_model(tmp_path / "peer")
    assert isinstance(model, ScoreModel) and model.outputs == 3
    tokens = torch.randint(1, 97, (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(model.score(model(tokens))[:, -1], peer(tokens).logits, atol=2e-5, rtol=1e-5)
    save_checkpoint(model, tmp_path, tmp_path / "again")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("peer", "again"))
    assert before == after
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, peer(tokens).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_our_own_models_save_load_and_start_undecided(tmp_path, tied):
    model = ScoreModel(tiny_model(3, tie_word_embeddings=tied), 1)
    tokens = torch.randint(10, 300, (2, 9))
    assert float(model.score(model(tokens)).detach().abs().max()) == 0
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(2))
    save_checkpoint(model, tmp_path, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert isinstance(again, ScoreModel)
    with torch.no_grad():
        assert torch.equal(model.score(model(tokens)), again.score(again(tokens)))
    loss = again.score(again(tokens)).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
    with pytest.raises(UserError, match="no output layer"):
        again.logits(again(tokens))


def test_scores_of_packed_rows_with_a_cache_are_those_of_a_fresh_forward():
    model = scored(tiny_model(4), 1)
    tokens = torch.randint(10, 300, (1, 6))
    cache = model.new_cache(1, 6)
    with torch.no_grad():
        whole = model.score(model(tokens))
        for at in range(6):
            mask = (torch.arange(6) <= at)[None, None, None]
            where = torch.tensor([[at]])
            step = model.score(model(tokens[:, at : at + 1], positions_BT=where, mask=mask, cache=cache))
            torch.testing.assert_close(step[:, 0], whole[:, at], atol=1e-5, rtol=1e-4)


def test_a_directory_without_its_scoring_layer_is_named(tmp_path):
    model = tiny_model(3)
    save_checkpoint(model, tmp_path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["architectures"] = ["Qwen3ForSequenceClassification"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"score\.weight"):
        load_model(tmp_path / "out")
