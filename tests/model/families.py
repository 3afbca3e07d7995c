"""Tiny random models of `transformers`, saved as checkpoint directories: the independent reference of `tests/model`."""

from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXPERTS = {"head_dim": 12, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
FAMILIES: dict[str, Any] = {
    "llama 2": lambda: transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "llama 3": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama, linear": lambda: transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}
    ),
    "llama, biases": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=12),
    "qwen3, biases": lambda: transformers.Qwen3Config(**SIZES, head_dim=12, attention_bias=True),
    "qwen3 experts": lambda: transformers.Qwen3MoeConfig(**SIZES, **EXPERTS),
    "qwen3 some experts": lambda: transformers.Qwen3MoeConfig(
        **SIZES | {"num_hidden_layers": 4}, **EXPERTS, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3]
    ),
}
"""Each of the four families in the forms its checkpoints have."""
OTHERS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma": lambda: transformers.GemmaConfig(**SIZES, head_dim=8),
    "gemma 2, sliding": lambda: transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=4),
    "gemma 3, sliding": lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4),
    "mistral, sliding": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "gpt neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "olmo 2": lambda: transformers.Olmo2Config(**SIZES),
    "llama, yarn": lambda: transformers.LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 32,
        },
    ),
}
"""Architectures that the decoder does not compute."""


def save_random(make: Any, path: Path, dtype: torch.dtype = torch.float32, **saving: Any) -> Any:
    """A random model of the config that `make` builds, saved in `path`; norms and biases are random, too."""
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(make()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model = model.to(dtype)
    model.save_pretrained(path, **saving)
    return model
