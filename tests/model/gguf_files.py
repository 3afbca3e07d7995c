"""Small tokenizers and models in the forms that GGUF files have, as checkpoint directories."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.model.families import FAMILIES, save_random

TEXTS = [
    "I'll say it's 1234567 times: café, 日本語… x_y==z;\n\n\tfoo( 12 )\r\n \n  ½٣٤ don'T!!\n!a  ",
    "def add(a, b):\n    return a + b  # 100%\n",
    "",
    " ",
    "  two  spaces",
    "<|im_start|>user\nHi there<|im_end|>\n",
    "THE END'S near: 3.14159, 2,718",
    "naïve façade — “quotes” …\t\ttabs\n\n\n",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(kind: str) -> Tokenizer:
    """A byte-level BPE trained on `TEXTS` that cuts as GPT-2, SmolLM, Llama 3 or Qwen2 do."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "gpt-2":
        tokenizer.pre_tokenizer = plain
    elif kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    else:
        from tokenizers import Regex

        pattern = Regex(LLAMA3 if kind == "llama-bpe" else QWEN2)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    if kind == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Byte-fallback BPE as `transformers` makes it of a SentencePiece model: ids in the order of the merges."""
    space = "\u2581"
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    merges = []
    for word in (f"{space}th", f"{space}the", "in", "ing", "an", f"{space}an", f"{space}and"):
        left, right = (word[:-1], word[-1]) if word[:-1] in vocab or len(word) == 2 else (word[:-2], word[-2:])
        if word == f"{space}th":
            vocab["th"] = len(vocab)
            merges.append(("t", "h"))
            left, right = space, "th"
        if word == f"{space}an":
            left, right = space, "an"
        merges.append((left, right))
        vocab[word] = len(vocab)
    for letter in f"{space}abcdefghijklmnopqrstuvwxyzTH.,\n":
        vocab[letter] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path, stops: list[int] | None = None, **named: str) -> None:
    """Write the tokenizer's files and the ids that end a turn beside the weights in `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    named = named or {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops or [2, 0], "pad_token_id": 0}))


def save_model(family: str, path: Path, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32, **named: str) -> None:
    """A random checkpoint of one of `FAMILIES` whose vocabulary is the tokenizer's, with a few rows more."""

    def make():
        config = FAMILIES[family]()
        config.vocab_size = tokenizer.get_vocab_size() + 5
        return config

    save_random(make, path, dtype)
    save_tokenizer(tokenizer, path, **named)
