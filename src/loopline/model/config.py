"""The shape of a decoder, in the names Hugging Face gives them.

`ModelConfig` describes one decoder of the Llama, Qwen2, Qwen3 or Qwen3-MoE family; `to_huggingface` and
`from_huggingface` translate to and from a checkpoint's `config.json`, `unsupported` says what of a `config.json` the
decoder does not compute (such a checkpoint goes through `model.huggingface`). Imports no torch. Not covered: sliding
windows, YaRN and dynamic rotary scaling, shared experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from loopline.base.config import Config
from loopline.base.errors import UserError
from loopline.base.files import read_json

FAMILIES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""`model_type` of each family the decoder computes, and the class `transformers` has for it."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {"max_position_embeddings": 32768, "num_key_value_heads": 4},
}
"""What a family's `config.json` means by leaving a key out."""


class RopeScaling(Config):
    """How rotary frequencies are stretched for contexts longer than those of pretraining."""

    kind: Literal["linear", "llama3"]
    """"linear" divides every frequency (Chen et al. 2023, arXiv:2306.15595); "llama3" only those of long waves."""
    factor: float = Field(ge=1)
    """How much longer."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """llama3: waves longer than original length / this are divided by `factor`."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """llama3: waves shorter than original length / this stay; those between are blended."""
    original_max_position_embeddings: int = Field(default=8192, ge=1)
    """llama3: longest sequence of pretraining."""

    @model_validator(mode="after")
    def validate_factors(self) -> RopeScaling:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        return self


class ExpertsConfig(Config):
    """Sparse feed-forward layers: a router sends each token to a few experts (arXiv:1701.06538)."""

    num_experts: int = Field(ge=1)
    """Experts of a layer."""
    num_experts_per_tok: int = Field(ge=1)
    """Experts that each token visits."""
    moe_intermediate_size: int = Field(ge=1)
    """Width of one expert."""
    norm_topk_prob: bool = False
    """Whether the chosen experts' probabilities are scaled to sum to 1."""
    decoder_sparse_step: int = Field(default=1, ge=1)
    """Every so many layers one has experts."""
    mlp_only_layers: tuple[int, ...] = ()
    """Layers (from 0) that stay dense all the same."""

    @model_validator(mode="after")
    def validate_choice(self) -> ExpertsConfig:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must not exceed num_experts ({self.num_experts})"
            )
        return self

    def sparse(self, layer: int) -> bool:
        """Whether `layer` (from 0) has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


LATER_FIELDS = ("qkv_bias", "output_bias", "mlp_bias", "rope_scaling", "experts")
"""Fields that a written config leaves out at their defaults, so that plans written before them keep their bytes."""


class ModelConfig(Config):
    """One decoder: pre-norm, rotary positions, grouped-query attention, SwiGLU, dense or with experts."""

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
    """RMSNorm over each query and key head before the rotation: the Qwen3 architecture; without it, Llama or Qwen2."""
    max_position_embeddings: int = Field(default=512, ge=8)
    """Longest sequence, in tokens."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections; alone, the Qwen2 architecture."""
    output_bias: bool = False
    """Bias of the attention's output projection."""
    mlp_bias: bool = False
    """Biases of the feed-forward layer (Llama only)."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary frequencies; None leaves them."""
    experts: ExpertsConfig | None = None
    """Sparse feed-forward layers: the Qwen3-MoE architecture; None is dense."""

    @model_validator(mode="after")
    def validate_heads(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}): lower num_key_value_heads to a divisor"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embeddings turn pairs of channels")
        if self.output_bias and not self.qkv_bias:
            raise ValueError("output_bias needs qkv_bias: no family has the one without the other")
        if self.experts is not None and not self.qk_norm:
            raise ValueError("experts need qk_norm: of the families with experts only Qwen3-MoE is implemented")
        if self.mlp_bias and self.qk_norm:
            raise ValueError("mlp_bias needs qk_norm off: only Llama has biases there")
        return self

    @model_serializer(mode="wrap")
    def serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Every field, but those of `LATER_FIELDS` only where they say something."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in values.items()
            if name not in LATER_FIELDS or getattr(self, name) != fields[name].default
        }

    @property
    def family(self) -> str:
        """`model_type` in Hugging Face's names."""
        if self.qk_norm:
            return "qwen3" if self.experts is None else "qwen3_moe"
        return "qwen2" if self.qkv_bias and not self.output_bias else "llama"

    def parameters(self) -> int:
        """Trainable parameters, embeddings included once when tied and every expert counted."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        block = self.hidden_size * (2 * queries + 2 * keys) + (2 * self.head_dim if self.qk_norm else 0)
        block += (queries + 2 * keys) * self.qkv_bias + self.hidden_size * self.output_bias + 2 * self.hidden_size
        dense = 3 * self.hidden_size * self.intermediate_size
        dense += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        total = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size
        for layer in range(self.num_hidden_layers):
            total += block
            if self.experts is not None and self.experts.sparse(layer):
                wide = 3 * self.hidden_size * self.experts.moe_intermediate_size
                total += self.experts.num_experts * (wide + self.hidden_size)
            else:
                total += dense
        return total

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that makes `transformers` build the same architecture."""
        raw: dict[str, Any] = {
            "architectures": [FAMILIES[self.family]],
            "model_type": self.family,
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
            "attention_bias": self.output_bias,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "pad_token_id": 0,
            "eos_token_id": 1,
        }
        if self.mlp_bias:
            raw["mlp_bias"] = True
        if self.rope_scaling is not None:
            scaling = self.rope_scaling.model_dump()
            kind = scaling.pop("kind")
            raw["rope_scaling"] = {
                "rope_type": kind,
                **(scaling if kind == "llama3" else {"factor": scaling["factor"]}),
            }
        if self.experts is not None:
            raw |= self.experts.model_dump() | {"mlp_only_layers": list(self.experts.mlp_only_layers)}
        return raw

    @classmethod
    def from_huggingface(cls, path: Path) -> ModelConfig:
        """Read a checkpoint directory's `config.json`. Raises `UserError` for an architecture this decoder lacks."""
        return cls.from_raw(read_json(path / "config.json"), str(path / "config.json"))

    @classmethod
    def from_raw(cls, raw: dict[str, Any], name: str = "config.json") -> ModelConfig:
        """The same from what a `config.json` says; `name` is what errors call it."""
        lacking = unsupported(raw)
        if lacking:
            raise UserError(
                f"{name}: {lacking} is not implemented, so the decoder would compute something else",
                "use a Llama, Qwen2, Qwen3 or Qwen3-MoE checkpoint without it",
            )
        kind = raw["model_type"]
        missing = [key for key in REQUIRED if key not in raw]
        if missing:
            raise UserError(f"{name} lacks {', '.join(missing)}", "copy the config.json of the checkpoint again")
        raw = {**DEFAULTS[kind], **{key: value for key, value in raw.items() if value is not None}}
        heads = raw["num_attention_heads"]
        bias = bool(raw.get("attention_bias"))
        try:
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_hidden_layers=raw["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=raw.get("num_key_value_heads", heads),
                head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
                rope_theta=raw.get("rope_theta") or raw.get("rope_parameters", {}).get("rope_theta", 10_000.0),
                rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
                tie_word_embeddings=raw.get("tie_word_embeddings", False),
                qk_norm=kind in ("qwen3", "qwen3_moe"),
                max_position_embeddings=raw["max_position_embeddings"],
                qkv_bias=kind == "qwen2" or bias,
                output_bias=kind != "qwen2" and bias,
                mlp_bias=kind == "llama" and bool(raw.get("mlp_bias")),
                rope_scaling=_rope_scaling(raw),
                experts=_experts(raw) if kind == "qwen3_moe" else None,
            )
        except ValueError as error:
            raise UserError(f"{name} describes no decoder ({error})", "correct the values it names") from error


READABLE_QUANTIZATION = ("compressed-tensors", "pack-quantized")
"""Method and format that `model.quantization` writes and reads."""
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def unsupported(raw: dict[str, Any]) -> str | None:
    """What a `config.json` asks for that this decoder does not compute; None when there is nothing."""
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        return f"model_type {kind!r}"
    rope = _rope(raw)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", "linear", "llama3"):
        return f"rotary scaling of the kind {scaling!r}"
    if float(raw.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0) != 1.0:
        return "rotation of a part of the channels"
    if raw.get("hidden_act", "silu") != "silu":
        return f"the activation {raw['hidden_act']!r}"
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        return "sliding-window attention"
    quantization = raw.get("quantization_config")
    if quantization and (quantization.get("quant_method"), quantization.get("format")) != READABLE_QUANTIZATION:
        return f"the quantization {quantization.get('quant_method')!r}"
    return None


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings: `rope_scaling` of older checkpoints, `rope_parameters` of newer ones."""
    return {**(raw.get("rope_parameters") or {}), **(raw.get("rope_scaling") or {})}


def _rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings") if kind == "llama3" else ()
    found = {name: rope[name] for name in names if name in rope}
    if kind == "llama3":
        found.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    return RopeScaling(kind=kind, factor=rope["factor"], **found)


def _experts(raw: dict[str, Any]) -> ExpertsConfig:
    count = raw.get("num_experts", raw.get("num_local_experts", 128))
    return ExpertsConfig(
        num_experts=count,
        num_experts_per_tok=raw.get("num_experts_per_tok", 8),
        moe_intermediate_size=raw.get("moe_intermediate_size", 768),
        norm_topk_prob=raw.get("norm_topk_prob", False),
        decoder_sparse_step=raw.get("decoder_sparse_step", 1),
        mlp_only_layers=tuple(raw.get("mlp_only_layers") or ()),
    )
