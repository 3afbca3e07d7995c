"""Checkpoints, prompts and tasks that the benchmarks start from, all made on the spot from a seed.

    save_random(SHAPES["1m"], folder, stops=26)          # Qwen3-shaped, random weights, a tokenizer of its size
    prompts = make_prompts(folder, count=16, seed=0)

Both sides of a comparison read the same directory. Not covered: published checkpoints (speed does not depend on what
weights hold, except through lengths, which the stop tokens set).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loopline  # noqa: F401 # isort: skip  # Sets how torch's threads wait, before torch is loaded.

import numpy as np
import torch

from loopline.base.files import read_json, write_json
from loopline.chat.load import load_tokenizer
from loopline.corpus import tokenizer as tokenizers
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.store.context import Context
from loopline.training.batch import Example
from loopline.training.config import OptimizerConfig, TrainingConfig
from loopline.training.loop import train
from loopline.training.objectives import NextToken
from loopline.training.sources import ExampleSource

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "heads": 2},
    "1m": {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 5, "heads": 4},
    "20m": {"vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 11, "heads": 6},
    "100m": {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "heads": 12},
    "600m": {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "heads": 16,
        "head_dim": 128,
        "tokenizer": 8192,
    },
}
"""About 0.1, 1, 20, 100 and 600 million parameters: Qwen3's layout, tied embeddings, two query heads to a key head.

The last is Qwen3-0.6B's own shape, with a tokenizer that knows the first ids only.
"""


def model_config(shape: dict[str, int], length: int) -> ModelConfig:
    """The config of a shape, for sequences up to `length`."""
    heads = shape["heads"]
    return ModelConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=shape.get("head_dim", shape["hidden_size"] // heads),
        qk_norm=True,
        tie_word_embeddings=True,
        max_position_embeddings=length,
    )


def save_random(shape: dict[str, int], out: Path, length: int, mean_tokens: float | None = None) -> ModelConfig:
    """Write a checkpoint of random weights.

    With `mean_tokens` so many of the vocabulary's ids end an answer that it ends after each token with probability
    1 / `mean_tokens`: random weights choose ids about evenly, so lengths are geometric, many short and few long.
    """
    config = model_config(shape, length)
    known = shape.get("tokenizer", shape["vocab_size"])
    fast = tokenizers.train(nonsense(40 * known), known)
    tokenizers.save(fast, out / "tokenizer")
    save_checkpoint(Decoder(config).initialize(torch.Generator().manual_seed(0)), out / "tokenizer", out)
    if mean_tokens is not None:
        generation = read_json(out / "generation_config.json")
        count = max(1, round(config.vocab_size / mean_tokens))
        # The usual end of an answer, and the rarest tokens.
        stops = [1, *range(config.vocab_size - count + 1, config.vocab_size)]
        write_json(out / "generation_config.json", {**generation, "eos_token_id": stops, "transformers_version": "5"})
    return config


def stop_ids(checkpoint: Path) -> tuple[int, ...]:
    """The ids that end an answer."""
    found = read_json(checkpoint / "generation_config.json")["eos_token_id"]
    return tuple(found) if isinstance(found, list) else (found,)


def nonsense(words: int) -> list[str]:
    """Lines of made-up words, with enough repetition for a tokenizer to find pairs."""
    rng = np.random.default_rng(0)
    parts = [
        "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(2, 5))) for _ in range(words // 8)
    ]
    picks = rng.zipf(1.2, size=(words, 2)) % len(parts)
    made = [parts[a] + parts[b] for a, b in picks]
    return [" ".join(made[start : start + 16]) for start in range(0, words, 16)]


def make_prompts(checkpoint: Path, lengths: Sequence[int], seed: int) -> list[str]:
    """One user message per wanted length, in tokens, about."""
    tokenizer = load_tokenizer(checkpoint)
    words = " ".join(nonsense(4000)).split()
    rng = np.random.default_rng(seed)
    texts = []
    for length in lengths:
        text = ""
        while len(tokenizer.encode(text)) < length:
            text += " " + words[rng.integers(len(words))]
        texts.append(text.strip())
    return texts


def skewed_lengths(count: int, shortest: int, longest: int) -> list[int]:
    """`count` lengths from `shortest` to `longest`, evenly spaced on a logarithmic scale: many short, few long."""
    return [int(round(value)) for value in np.geomspace(shortest, longest, count)]


def as_tasks(prompts: Sequence[str], answers: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Task rows of user messages."""
    return [
        {
            "id": f"prompt-{number}",
            "task_set": "prompts",
            "messages": [{"role": "user", "content": prompt}],
            "grader": "benchmark",
            "answer": answers[number] if answers else "",
        }
        for number, prompt in enumerate(prompts)
    ]


def compile_sampling(checkpoint: Path) -> None:
    """Sample a token, so that what is compiled at the very first use is on disk and no side's time has it."""
    TorchEngine.from_checkpoint(checkpoint).generate([[0]], Sampling(1))


def teach_additions(out: Path, steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """Write a checkpoint of 1M parameters that adds up numbers a little, and return tasks to practise on.

    It is fine-tuned for `steps` steps on answers of two kinds, seven in ten the bare sum and the others worked out one
    addition after the other. The second kind is right more often: that is what reinforcement learning is to find.
    """
    rng = np.random.default_rng(seed)
    rows, conversations = [], []
    for number in range(4000):
        terms = rng.integers(1, 13, size=int(rng.integers(3, 6))).tolist()
        total, worked = terms[0], []
        for term in terms[1:]:
            worked.append(f"{total}+{term}={total + term}")
            total += term
        question = {"role": "user", "content": "+".join(map(str, terms)) + "=?"}
        thinking = f"<think>{';'.join(worked)}</think>" if rng.random() < 0.3 else ""
        reply = {"role": "assistant", "content": f"{thinking}{total}"}
        rows.append({"id": f"sum-{number}", "task_set": "prompts", "messages": [question], "answer": str(total)})
        conversations.append([question, reply])
    shape = {**SHAPES["1m"], "vocab_size": 320}
    texts = [turn["content"] for conversation in conversations[:200] for turn in conversation] + nonsense(2000)
    tokenizers.save(tokenizers.train(texts, shape["vocab_size"]), out / "tokenizer")
    tokenizer = load_tokenizer(out / "tokenizer")
    examples = []
    for conversation in conversations:
        ids, mask = tokenizer.render_with_mask(conversation)
        examples.append(Example(ids, [float(chosen) for chosen in mask]))
    model = Decoder(model_config(shape, 256)).initialize(torch.Generator().manual_seed(seed))
    settings = TrainingConfig(optimizer=OptimizerConfig(kind="muon", learning_rate=3e-3))
    with tempfile.TemporaryDirectory() as directory:
        ctx = Context("benchmark", Path(directory) / "out", Path(directory) / "state", seed)
        train(model, NextToken(), ExampleSource(examples, 64, 64, 64, seed), steps, settings, ctx)
    save_checkpoint(model, out / "tokenizer", out)
    return [{**row, "grader": "benchmark"} for row in rows]
