"""Muon against `torch.optim.Muon`, and against what an orthogonal matrix is."""

import pytest
import torch

from loopline.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.transpose(1, 2) @ result @ v.transpose(1, 2)
    diagonal = torch.diagonal(inner, dim1=1, dim2=2)
    assert float(diagonal.min()) > 0.3 and float(diagonal.max()) < 1.3
    assert float((inner - torch.diag_embed(diagonal)).abs().max()) < 1e-3


def test_steps_follow_the_reference_within_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 16), (16, 24), (24, 16))]
    ours = [torch.nn.Parameter(item.clone()) for item in start]
    theirs = [torch.nn.Parameter(item.clone()) for item in start]
    mine, reference = Muon(ours, 0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        moved, expected = a.detach() - first, b.detach() - first
        assert float((moved - expected).norm() / expected.norm()) < 0.05
