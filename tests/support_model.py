"""A tiny decoder and tokenizer for tests that need real ones."""

from pathlib import Path

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from loopline.chat.tokenizer import SPECIAL_TOKENS, Tokenizer
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder


def tiny_config(vocab_size: int = 300, **changes: object) -> ModelConfig:
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    return ModelConfig.model_validate({**fields, **changes})


def tiny_model(seed: int = 0, vocab_size: int = 300, **changes: object) -> Decoder:
    return Decoder(tiny_config(vocab_size, **changes)).initialize(torch.Generator().manual_seed(seed)).eval()


def tiny_tokenizer(path: Path) -> Tokenizer:
    """A byte-level tokenizer with the ten special tokens first, saved in `path`."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["one plus two is three", "a lamp costs seven coins"], trainer)
    path.mkdir(parents=True, exist_ok=True)
    fast.save(str(path / "tokenizer.json"))
    return Tokenizer.load(path)
