"""Exports through the stage and the command: safetensors in the asked type and shards, GGUF with everything in it."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from loopline.base.errors import UserError
from loopline.cli import app
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.posttrain.start import start
from loopline.posttrain.start_config import StartConfig
from loopline.release.export import export, export_model
from loopline.release.export_config import ExportConfig
from loopline.store.artifact import Artifact, content_digest
from tests.model.families import OTHERS, save_random
from tests.model.gguf_files import byte_level, save_model, save_tokenizer
from tests.support import make_artifact, make_context


@pytest.fixture
def checkpoint(tmp_path):
    """Weights that came in bfloat16 and were trained in float32."""
    save_model("qwen3", tmp_path / "origin", byte_level("qwen2"), torch.bfloat16)
    (tmp_path / "origin" / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    model = load_model(tmp_path / "origin")
    save_checkpoint(model, tmp_path / "origin", tmp_path / "m")
    return make_artifact(tmp_path / "m", "sft", "checkpoint")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("source", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)]
)
def test_safetensors_in_the_asked_type_and_shards(checkpoint, tmp_path, dtype, expected):
    ctx = make_context(tmp_path / dtype)
    export(ExportConfig(dtype=dtype, shard_gb=2e-5), {"policy": checkpoint}, ctx)
    assert len(list(ctx.out.glob("model-*-of-*.safetensors"))) > 1
    peer = transformers.AutoModelForCausalLM.from_pretrained(ctx.out, dtype="auto").eval()
    assert peer.dtype == expected
    assert (ctx.out / "LICENSE").exists() and (ctx.out / "chat_template.jinja").exists()
    assert (ctx.out / "generation_config.json").exists() and not (ctx.out / "artifact.json").exists()
    model = load_model(checkpoint.path)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            peer.float()(tokens).logits, model.logits(model(tokens)), atol=0.05 if dtype == "float16" else 1e-4, rtol=0
        )
    digest = content_digest(ctx.out)
    again = make_context(tmp_path / "again")
    export(ExportConfig(dtype=dtype, shard_gb=2e-5), {"policy": checkpoint}, again)
    assert content_digest(again.out) == digest


def test_other_architectures_are_exported_without_building_them(tmp_path):
    peer = save_random(OTHERS["gemma 3, sliding"], tmp_path / "m")
    save_tokenizer(byte_level("qwen2"), tmp_path / "m")
    export_model(str(tmp_path / "m"), tmp_path / "out", to="safetensors", dtype="bfloat16")
    written, stored = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "m"))
    assert sorted(written) == sorted(stored)
    assert all(torch.equal(written[name], stored[name].bfloat16()) for name in stored)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(again) is type(peer)
    pytest.importorskip("gguf")
    with pytest.raises(UserError, match=r"gemma3.*safetensors"):
        export_model(str(tmp_path / "m"), tmp_path / "out", to="gguf")


def test_an_int8_checkpoint_is_expanded(checkpoint, tmp_path):
    model = load_model(checkpoint.path)
    save_checkpoint(model, checkpoint.path, tmp_path / "int8", int8=True)
    export_model(str(tmp_path / "int8"), tmp_path / "out", dtype="float32")
    quantized, plain = load_model(tmp_path / "int8"), load_model(tmp_path / "out")
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens), quantized(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_gguf_through_the_command_starts_a_line_again(checkpoint, tmp_path, kind):
    pytest.importorskip("gguf")
    done = CliRunner().invoke(
        app,
        ["export", str(checkpoint.path), "--to", "gguf", "--type", kind, "--name", "tiny", "--out", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    file = tmp_path / f"tiny-{kind}.gguf"
    ctx = make_context(tmp_path / "again")
    inputs = {"model": Artifact(file, "model", "file", "x", "x")}
    start(StartConfig(model=str(file)), inputs, ctx)
    ours, again = load_model(checkpoint.path), load_model(ctx.out)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        exact, found = ours.logits(ours(tokens)), again.logits(again(tokens))
    assert float((exact - found).norm() / exact.norm()) < (5e-3 if kind == "f16" else 0.15)
    assert "GGUF" in ctx.metrics.values["how"]


def test_a_setting_that_does_not_exist_is_refused_by_name(checkpoint, tmp_path):
    with pytest.raises(UserError, match="--type q2"):
        export_model(str(checkpoint.path), tmp_path / "out", to="gguf", type="q2")
