"""Training the tokenizer: byte-level BPE with ten special tokens first and every digit a token of its own.

Use: `train(texts, vocab_size)`, then `save(tokenizer, directory)`; `transformers.AutoTokenizer` loads the directory and
its chat template renders the ids that `chat.tokenizer.Tokenizer.render` gives. Any text survives encoding and
decoding. `plain(tokenizer)` encodes corpus text, in which `<|end|>` is eight characters and not a special token.
Not covered: vocabularies learned elsewhere (a checkpoint brings its own tokenizer).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_text
from loopline.chat.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS
from loopline.corpus.document import Document

# Contractions, words with one leading symbol or space, single digits, runs of symbols, line ends, spaces (after Qwen2).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_REPEATS = 8


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens. Raises `UserError` when the text has too few pairs to merge."""
    tokenizer = _bare(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"The corpus supports a vocabulary of {tokenizer.get_vocab_size()} tokens, not {vocab_size}",
            "set tokenizer.vocab_size lower, or give the raw stage more text",
        )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _bare(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The same merges without special tokens: corpus text can never hold one of the chat format."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(state))


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, in the form `transformers` reads."""
    write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[1],
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )


def training_texts(
    documents: Sequence[Document],
    weights: Mapping[str, float],
    tasks: Sequence[Mapping[str, Any]],
    size: int,
    task_share: float,
) -> Iterator[str]:
    """About `size` bytes of text to learn merges from: sources by weight, and the training tasks' messages.

    A source too small for its share is repeated at most `MAX_REPEATS` times. Special tokens in messages are left out:
    they are no text.
    """
    by_source: dict[str, list[str]] = {}
    for document in sorted(documents, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
        by_source.setdefault(document.source, []).append(document.text)
    rest = size * (1 - task_share if tasks else 1)
    for source in sorted(by_source):
        yield from _fill(by_source[source], int(rest * weights.get(source, 0.0)))
    order = sorted(tasks, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
    yield from _fill([_plain_text(row) for row in order], int(size * task_share))


def _fill(texts: list[str], budget: int) -> Iterator[str]:
    for _ in range(MAX_REPEATS):
        for text in texts:
            if budget <= 0:
                return
            yield text[:budget]
            budget -= len(text)


def _plain_text(row: Mapping[str, Any]) -> str:
    messages = list(row["messages"])
    for response in row.get("responses", ()):
        messages += response["messages"]
    text = "\n".join(message["content"] for message in messages)
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\n")
    return text
