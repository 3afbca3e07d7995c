"""Checkpoint directories that `transformers` loads: config.json, model.safetensors, generation_config.json, tokenizer.

    save_checkpoint(model, tokenizer_dir, out)
    model = load_model(out); tokenizer = load_tokenizer(out)

Tensor names are Hugging Face's for Llama and Qwen3. The bytes depend on the weights only, so equal weights give equal
files. Not covered: sharded checkpoints.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from throughline.base.errors import UserError
from throughline.base.files import write_bytes, write_json
from throughline.model.config import ModelConfig
from throughline.model.decoder import Decoder
from throughline.model.quantization import QUANTIZATION_CONFIG, dequantize_tensors, quantize_tensors
from throughline.model.tokenizer import TOKENIZER_FILES, Tokenizer


def to_huggingface(model: Decoder) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's tensor names, contiguous, on the CPU."""
    config = model.config
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    tensors = {"model.embed_tokens.weight": state["embedding.weight"], "model.norm.weight": state["norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = state["head.weight"]
    for number in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{number}", f"model.layers.{number}"
        q, k, v = state[f"{ours}.attention.qkv.weight"].split((queries, keys, keys))
        gate, up = state[f"{ours}.feed_forward.gate_up.weight"].chunk(2)
        tensors |= {
            f"{theirs}.input_layernorm.weight": state[f"{ours}.attention_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": state[f"{ours}.feed_forward_norm.weight"],
            f"{theirs}.self_attn.q_proj.weight": q,
            f"{theirs}.self_attn.k_proj.weight": k,
            f"{theirs}.self_attn.v_proj.weight": v,
            f"{theirs}.self_attn.o_proj.weight": state[f"{ours}.attention.out.weight"],
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": state[f"{ours}.feed_forward.down.weight"],
        }
        if config.qk_norm:
            tensors[f"{theirs}.self_attn.q_norm.weight"] = state[f"{ours}.attention.q_norm.weight"]
            tensors[f"{theirs}.self_attn.k_norm.weight"] = state[f"{ours}.attention.k_norm.weight"]
    return {name: tensors[name].contiguous().clone() for name in sorted(tensors)}


def from_huggingface(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A `Decoder` state dict from Hugging Face's tensors. Raises `KeyError` for a missing tensor."""
    state = {"embedding.weight": tensors["model.embed_tokens.weight"], "norm.weight": tensors["model.norm.weight"]}
    if not config.tie_word_embeddings:
        state["head.weight"] = tensors["lm_head.weight"]
    for number in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{number}", f"model.layers.{number}"
        attention = [tensors[f"{theirs}.self_attn.{name}_proj.weight"] for name in "qkv"]
        state |= {
            f"{ours}.attention_norm.weight": tensors[f"{theirs}.input_layernorm.weight"],
            f"{ours}.feed_forward_norm.weight": tensors[f"{theirs}.post_attention_layernorm.weight"],
            f"{ours}.attention.qkv.weight": torch.cat(attention),
            f"{ours}.attention.out.weight": tensors[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.feed_forward.gate_up.weight": torch.cat(
                (tensors[f"{theirs}.mlp.gate_proj.weight"], tensors[f"{theirs}.mlp.up_proj.weight"])
            ),
            f"{ours}.feed_forward.down.weight": tensors[f"{theirs}.mlp.down_proj.weight"],
        }
        if config.qk_norm:
            state[f"{ours}.attention.q_norm.weight"] = tensors[f"{theirs}.self_attn.q_norm.weight"]
            state[f"{ours}.attention.k_norm.weight"] = tensors[f"{theirs}.self_attn.k_norm.weight"]
    return state


def save_checkpoint(model: Decoder, tokenizer_dir: Path, out: Path, int8: bool = False) -> None:
    """Write a checkpoint directory, with int8 linear weights when asked; each file is written atomically."""
    out.mkdir(parents=True, exist_ok=True)
    config, tensors = model.config.to_huggingface(), to_huggingface(model)
    if int8:
        config, tensors = config | {"quantization_config": QUANTIZATION_CONFIG}, quantize_tensors(tensors)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"eos_token_id": 1, "pad_token_id": 0, "do_sample": True})
    write_bytes(out / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).exists():
            shutil.copyfile(tokenizer_dir / name, out / name)


def load_model(path: Path, device: str = "cpu") -> Decoder:
    """Read a checkpoint directory into a `Decoder` in float32.

    Raises `UserError` when files are missing or damaged, or when the architecture is not implemented.
    """
    config = ModelConfig.from_huggingface(path)
    weights = path / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{path} has no model.safetensors", "point at a checkpoint directory with one weights file")
    try:
        tensors = {name: value.float() for name, value in dequantize_tensors(load_file(weights)).items()}
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({error})", "delete that artifact and run the line again") from error
    model = Decoder(config)
    try:
        model.load_state_dict(from_huggingface(tensors, config))
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{weights} does not hold the tensors its config.json promises ({error})", "save the checkpoint again"
        ) from error
    return model.to(device)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or tokenizer directory."""
    return Tokenizer.load(path)
