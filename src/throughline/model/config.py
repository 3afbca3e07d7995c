"""The shape of a decoder, in the names Hugging Face gives them.

`ModelConfig` describes one dense decoder of the Llama/Qwen3 family; `to_huggingface` and `from_huggingface` translate
to and from a checkpoint's `config.json`. Imports no torch. Not covered: experts, sliding windows, rope scaling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from throughline.base.config import Config
from throughline.base.errors import UserError
from throughline.base.files import read_json


class ModelConfig(Config):
    """One dense decoder: pre-norm, rotary positions, grouped-query attention, SwiGLU."""

    vocab_size: int = Field(ge=16)
    """Rows of the embedding table."""
    hidden_size: int = Field(ge=8)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=8)
    """Width of the SwiGLU feed-forward layer."""
    num_hidden_layers: int = Field(ge=1)
    """Blocks."""
    num_attention_heads: int = Field(ge=1)
    """Query heads."""
    num_key_value_heads: int = Field(ge=1)
    """Key/value heads; fewer than query heads is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)."""
    head_dim: int = Field(ge=2)
    """Channels of one head; even, since rotary embeddings turn pairs."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864)."""
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square before the root in RMSNorm."""
    tie_word_embeddings: bool = True
    """Whether the output layer is the embedding table."""
    qk_norm: bool = True
    """RMSNorm over each query and key head before the rotation: the Qwen3 architecture; without it, Llama."""
    max_position_embeddings: int = Field(default=512, ge=8)
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def validate_heads(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}): lower num_key_value_heads to a divisor"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embeddings turn pairs of channels")
        return self

    def parameters(self) -> int:
        """Trainable parameters, embeddings included once when tied."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys) + (2 * self.head_dim if self.qk_norm else 0)
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + self.hidden_size

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that makes `transformers` build the same architecture."""
        return {
            "architectures": ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "pad_token_id": 0,
            "eos_token_id": 1,
        }

    @classmethod
    def from_huggingface(cls, path: Path) -> ModelConfig:
        """Read a checkpoint directory's `config.json`. Raises `UserError` for an architecture this decoder lacks."""
        raw = read_json(path / "config.json")
        kind = raw.get("model_type")
        if kind not in ("llama", "qwen3"):
            raise UserError(
                f"{path / 'config.json'}: model_type {kind!r} is not one this decoder implements",
                "use a Llama or Qwen3 checkpoint",
            )
        lacking = _lacking(raw)
        if lacking:
            raise UserError(
                f"{path / 'config.json'}: {lacking} is not implemented, so the decoder would compute something else",
                "use a checkpoint without it",
            )
        heads = raw["num_attention_heads"]
        theta = raw.get("rope_theta") or (raw.get("rope_parameters") or {}).get("rope_theta", 10_000.0)
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads", heads),
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            rope_theta=theta,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            qk_norm=kind == "qwen3",
            max_position_embeddings=raw.get("max_position_embeddings", 512),
        )


def _lacking(raw: dict[str, Any]) -> str | None:
    """What a Llama or Qwen3 config asks for that this decoder does not compute; None when there is nothing."""
    rope = {**(raw.get("rope_parameters") or {}), **(raw.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        return f"rotary scaling of the kind {kind!r}"
    if raw.get("hidden_act", "silu") != "silu":
        return f"the activation {raw['hidden_act']!r}"
    if raw.get("use_sliding_window"):
        return "sliding-window attention"
    if raw.get("attention_bias") or raw.get("mlp_bias"):
        return "a bias in the layers"
    return None
