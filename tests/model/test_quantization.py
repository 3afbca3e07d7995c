"""int8 weights stay within half a step, and the directory loads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.quantization import dequantize_rows, pack, quantize_rows, unpack
from tests.support_model import tiny_model


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_every_weight_is_within_half_a_step(seed, scale):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * scale
    weight[2] = 0
    values, scales = quantize_rows(weight)
    assert values.dtype == torch.int8 and int(values.abs().max()) <= 127
    error = (dequantize_rows(values, scales) - weight).abs()
    assert bool((error <= scales / 2 * 1.001).all())


@given(rows=st.integers(1, 4), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_packing_loses_nothing(rows, columns, seed):
    values = torch.randint(-127, 128, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    assert torch.equal(unpack(pack(values), columns), values)


def test_a_quantized_directory_is_smaller_and_loads(tmp_path):
    model = tiny_model(4)
    save_checkpoint(model, tmp_path, tmp_path / "float")
    save_checkpoint(model, tmp_path, tmp_path / "int8", int8=True)
    again = load_model(tmp_path / "int8")
    tokens = torch.randint(10, 300, (2, 30))
    with torch.no_grad():
        a, b = model.logits(model(tokens)), again.logits(again(tokens))
    assert float((a - b).std()) < 0.1 * float(a.std())
    assert (tmp_path / "int8/model.safetensors").stat().st_size < (tmp_path / "float/model.safetensors").stat().st_size


def test_transformers_reads_the_int8_directory(tmp_path):
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    model = tiny_model(4)
    save_checkpoint(model, tmp_path, tmp_path / "int8", int8=True)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    ours = load_model(tmp_path / "int8")
    tokens = torch.randint(10, 300, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), peer(tokens).logits, atol=1e-3, rtol=1e-3)
