"""Pruning: the kept layers compute what they did in the source."""

import pytest
import torch

from loopline.base.errors import UserError
from loopline.distill.config import PruneConfig
from loopline.distill.prune import kept_layers, prune
from loopline.model.checkpoint import load_model
from tests.support import make_context


def test_layers_are_spread_from_the_first_to_the_last():
    assert kept_layers(30, 15)[0] == 0 and kept_layers(30, 15)[-1] == 29
    assert len(set(kept_layers(30, 15))) == 15
    assert kept_layers(4, 2) == (0, 3) and kept_layers(4, 1) == (0,)


def test_more_layers_than_there_are_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="layers, and prune.layers is 99"):
        prune(PruneConfig(layers=99), {"checkpoint": world["policy"]}, make_context(tmp_path))


def test_the_copy_computes_what_the_kept_layers_do(world, tmp_path):
    context = make_context(tmp_path)
    prune(PruneConfig(layers=1), {"checkpoint": world["policy"]}, context)
    whole, copy = load_model(world["policy"].path), load_model(context.out)
    whole.blocks = torch.nn.ModuleList([whole.blocks[0]])
    tokens = torch.arange(12, 40)[None]
    with torch.no_grad():
        assert torch.equal(whole(tokens), copy(tokens))
    assert (context.out / "tokenizer.json").exists()
