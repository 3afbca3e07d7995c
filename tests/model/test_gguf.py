"""GGUF files: what is exported and imported equals the checkpoint, and `transformers` reads the same from the file."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model
from loopline.model.gguf_read import GGUFFile, import_gguf
from loopline.model.gguf_write import export_gguf
from tests.model.gguf_files import TEMPLATE, TEXTS, byte_level, save_model, save_tokenizer, sentence_piece

gguf = pytest.importorskip("gguf")
CASES = {
    "llama 2": "sentencepiece",
    "llama 3": "llama-bpe",
    "llama, linear": "smollm",
    "llama, biases": "gpt-2",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
}
"""Families, and the tokenizer each is tried with."""
cases = pytest.mark.parametrize("family", CASES)


def make(family, path, dtype=torch.float32):
    if CASES[family] == "sentencepiece":
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        save_model(family, path, sentence_piece(), dtype, **named)
    else:
        save_model(family, path, byte_level(CASES[family]), dtype)


def reference(path, file):
    """`transformers`' own reading of the file, told the config: it takes 128 channels a head for every Qwen3."""
    config = transformers.AutoConfig.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=config, dtype=torch.float32
    )
    return model.eval()


def logits(path):
    model = load_model(path).eval()
    tokens = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return tokens, model.logits(model(tokens))


def ids(path, text, special=True):
    return Tokenizer.from_file(str(path / "tokenizer.json")).encode(text, add_special_tokens=special).ids


@cases
def test_a_round_trip_gives_the_same_weights_tokens_and_template(tmp_path, family):
    make(family, tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", "f32")
    import_gguf(tmp_path / "a.gguf", tmp_path / "b")
    tokens, expected = logits(tmp_path / "a")
    again, found = logits(tmp_path / "b")
    assert torch.equal(tokens, again)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for text in TEXTS:
        for special in (True, False):
            assert ids(tmp_path / "b", text, special) == ids(tmp_path / "a", text, special), repr(text)
    first, second = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in "ab")
    assert first.get_vocab() == second.get_vocab()
    for text in TEXTS:
        assert second.decode(second.encode(text).ids) == first.decode(first.encode(text).ids)
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == TEMPLATE
    ends = json.loads((tmp_path / "b" / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(ends) == [0, 2]
    named = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert named["eos_token"] == json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())["eos_token"]
    # A second trip changes nothing at all.
    export_gguf(tmp_path / "b", tmp_path / "b.gguf", "f32")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("family", ["llama 2", "llama 3", "llama, linear", "qwen2", "qwen3"])
def test_transformers_reads_the_same_model_from_the_file(tmp_path, family):
    make(family, tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", "f32")
    peer = reference(tmp_path / "a", tmp_path / "a.gguf")
    import_gguf(tmp_path / "a.gguf", tmp_path / "b")
    tokens, found = logits(tmp_path / "b")
    with torch.no_grad():
        torch.testing.assert_close(found, peer(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama 2", "qwen3"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_expand_to_what_transformers_expands_them_to(tmp_path, family, kind):
    make(family, tmp_path / "a")
    if kind.islower():
        export_gguf(tmp_path / "a", tmp_path / "a.gguf", kind)
    else:
        export_gguf(tmp_path / "a", tmp_path / "plain.gguf", "f32")
        quantize_file(tmp_path / "plain.gguf", tmp_path / "a.gguf", getattr(gguf.GGMLQuantizationType, kind))
    import_gguf(tmp_path / "a.gguf", tmp_path / "b")
    peer = reference(tmp_path / "a", tmp_path / "a.gguf")
    tokens, found = logits(tmp_path / "b")
    with torch.no_grad():
        torch.testing.assert_close(found, peer(tokens).logits, atol=1e-3, rtol=1e-4)
    _, exact = logits(tmp_path / "a")
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < {"f16": 1e-2, "bf16": 5e-2, "q8_0": 0.2}.get(kind, 1.0)


def quantize_file(source, out, kind):
    """The same file with every matrix quantized: written by the package, not by us."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_k_quants_expand(tmp_path):
    """Blocks of 256 of any bytes are a valid Q4_K or Q6_K tensor: what the package expands is what is imported."""
    from loopline.model.config import ModelConfig
    from loopline.model.gguf_layout import metadata_of, tensor_names
    from loopline.model.gguf_tokenizer import tokenizer_metadata
    from loopline.model.gguf_write import _add

    tokenizer = byte_level("qwen2")
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    save_tokenizer(tokenizer, tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text("{}")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen3")
    entries = {f"qwen3.{key}": value for key, value in metadata_of(config).items()}
    for key, value in {**entries, **tokenizer_metadata(tmp_path / "t", config.vocab_size)}.items():
        _add(writer, key, value)
    expected = {}
    generator = np.random.default_rng(0)
    for theirs, ours in tensor_names(config).items():
        shape = {"embed_tokens": (config.vocab_size, 256)}.get(theirs.split(".")[1], (256, 256))
        if "norm" in theirs:
            writer.add_tensor(ours, np.ones(64 if theirs[-13] in "qk" else 256, dtype=np.float32))
            continue
        kind = gguf.GGMLQuantizationType.Q6_K if "v_proj" in theirs else gguf.GGMLQuantizationType.Q4_K
        size = gguf.GGML_QUANT_SIZES[kind][1]
        data = generator.integers(0, 50, (shape[0], size), dtype=np.uint8)
        writer.add_tensor(ours, data, raw_dtype=kind)
        expected[theirs] = gguf.quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    import_gguf(tmp_path / "a.gguf", tmp_path / "b")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "b" / "model.safetensors")
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_bfloat16_by_choice_and_the_licence_goes_along(tmp_path):
    make("qwen2", tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", "f32", name="tiny")
    metadata = GGUFFile(tmp_path / "a.gguf").metadata
    assert metadata["general.license"] == "apache-2.0" and metadata["general.name"] == "tiny"
    import_gguf(tmp_path / "a.gguf", tmp_path / "b", "bfloat16")
    assert "apache-2.0" in (tmp_path / "b" / "LICENSE").read_text()
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    assert peer.dtype == torch.bfloat16
    export_gguf(tmp_path / "b", tmp_path / "b.gguf", "bf16")
    assert GGUFFile(tmp_path / "b.gguf").metadata["general.license"] == "apache-2.0"


def test_every_stop_id_is_named_and_too_many_are_refused(tmp_path):
    make("qwen3", tmp_path / "a")
    path = tmp_path / "a"
    for stops, expected in (([2], {"eos": 2}), ([0, 2], {"eos": 2, "eot": 0}), ([2, 7, 8], {"eot": 7, "eom": 8})):
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        export_gguf(path, tmp_path / "a.gguf", "f16")
        metadata = GGUFFile(tmp_path / "a.gguf").metadata
        for name, number in expected.items():
            assert metadata[f"tokenizer.ggml.{name}_token_id"] == number
        import_gguf(tmp_path / "a.gguf", tmp_path / "b")
        again = json.loads((tmp_path / "b" / "generation_config.json").read_text())["eos_token_id"]
        assert set(stops) <= set(again)
    # The fourth has a name at which llama.cpp stops anyway; a fifth has not.
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0, 7, 8]}))
    export_gguf(path, tmp_path / "a.gguf", "f16")
    assert GGUFFile(tmp_path / "a.gguf").metadata["tokenizer.ggml.eom_token_id"] == 8
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 8, 9]}))
    with pytest.raises(UserError, match="at most 3"):
        export_gguf(path, tmp_path / "a.gguf", "f16")


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path):
    make("qwen2", tmp_path / "a")
    odd = byte_level("gpt-2")
    odd.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), odd.pre_tokenizer])
    odd.save(str(tmp_path / "a" / "tokenizer.json"))
    with pytest.raises(UserError, match=r"cuts text.*safetensors"):
        export_gguf(tmp_path / "a", tmp_path / "a.gguf")
    words = Tokenizer(models.WordLevel({"a": 0, "<|im_end|>": 1}, unk_token="a"))
    words.save(str(tmp_path / "a" / "tokenizer.json"))
    with pytest.raises(UserError, match="WordLevel"):
        export_gguf(tmp_path / "a", tmp_path / "a.gguf")
    for family, says in (("qwen3 experts", "qwen3_moe"), ("qwen3, biases", "biases")):
        save_model(family, tmp_path / family, byte_level("qwen2"))
        with pytest.raises(UserError, match=says):
            export_gguf(tmp_path / family, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def test_values_beyond_half_precision_are_refused_by_name(tmp_path):
    make("qwen2", tmp_path / "a")
    model = load_model(tmp_path / "a")
    with torch.no_grad():
        model.embedding.weight[3, 3] = 1e6
    from loopline.model.checkpoint import save_checkpoint

    save_checkpoint(model, tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=r"embed_tokens.*65,504.*bf16"):
        export_gguf(tmp_path / "b", tmp_path / "b.gguf", "f16")
    export_gguf(tmp_path / "b", tmp_path / "b.gguf", "bf16")


def test_files_that_cannot_be_imported_say_why(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be read as a GGUF"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    make("qwen2", tmp_path / "m")
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "out")
    for was, now, says in (
        (b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00qwen2",
         b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00bloom", "bloom"),
        (b"blk.1.attn_q.bias", b"blk.1.attn_q.bios", "lacks blk.1.attn_q.bias"),
    ):  # fmt: skip
        assert was in whole.replace(b"\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00")
        (tmp_path / "changed.gguf").write_bytes(whole.replace(was, now))
        with pytest.raises(UserError, match=says):
            import_gguf(tmp_path / "changed.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'loopline\[gguf\]'"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
