"""A tokenizer in GGUF's metadata and as the files of a checkpoint directory, in both directions.

    files = tokenizer_files(metadata)                    # {"tokenizer.json": ..., "tokenizer_config.json": ..., ...}
    entries = tokenizer_metadata(directory, vocab_size)  # keys of GGUF, `tokenizer.` included

GGUF says how text is cut before merging by a name only (`tokenizer.ggml.pre`) and llama.cpp knows what each name does;
`CUTS` holds the ones covered here. Writing recognizes a tokenizer by what it does to a text that all of them cut
differently. SentencePiece vocabularies become byte-fallback BPE, as `transformers` converts them. Not covered:
WordPiece and unigram vocabularies, normalizers other than NFC (which llama.cpp leaves out).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loopline.base.errors import UserError
from loopline.base.files import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF."""
SPACE = "\u2581"
"""How SentencePiece writes a space."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen2 cut text; they differ in how many digits stay together."""
END_NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>",
)  # fmt: skip
"""Control tokens at which llama.cpp stops whatever the file's ids say."""
ENDS = ("eos", "eot", "eom")
"""Metadata that names tokens which end a turn."""
NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""Special tokens by GGUF's name, and what tokenizer_config.json calls them."""
PROBE = (
    "I'll SAY'S it's 1234567 times:  caf\u00e9 \u65e5\u672c\u8a9e\u2026 x_y==z;\n\n\tfoo( 12 ) \r\n \n  "
    "\u00bd\u0663\u0664 don'T!!\n!a  "
)
"""A text that every way of cutting cuts differently."""


@dataclass(frozen=True)
class Cut:
    """How text is cut into pieces before merges are applied."""

    steps: tuple[dict[str, Any], ...]
    """Pre-tokenizers as tokenizer.json has them."""
    whole_words: bool = False
    """Whether a piece that is in the vocabulary is taken without merging."""
    normalizer: str | None = None
    """Normalization of the text before."""


def _split(pattern: str) -> tuple[dict[str, Any], ...]:
    return (
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        _bytes(use_regex=False),
    )


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


CUTS: dict[str, Cut] = {
    "gpt-2": Cut((_bytes(use_regex=True),)),
    "smollm": Cut(({"type": "Digits", "individual_digits": True}, _bytes(use_regex=True))),
    "llama-bpe": Cut(_split(WORDS % "{1,3}"), whole_words=True),
    "dbrx": Cut(_split(WORDS % "{1,3}")),
    "qwen2": Cut(_split(WORDS % ""), normalizer="NFC"),
}
"""By the name that `tokenizer.ggml.pre` has for it."""
ALIASES = {
    "default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "starcoder": "smollm", "refact": "smollm",
    "command-r": "smollm", "smaug-bpe": "dbrx", "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2", "megrez": "qwen2",
}  # fmt: skip
"""Other names for the same."""


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The files of the tokenizer that a GGUF file holds, by name: JSON values, and text for the chat template.

    Raises `UserError` for a kind of vocabulary or a way of cutting that is not covered.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"The file's tokenizer is of the kind {kind!r}, which is not imported",
            "use a model with byte-level BPE (gpt2) or SentencePiece BPE (llama), or its checkpoint in safetensors",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    named = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in NAMED}
    vocabulary = {token: number for number, token in enumerate(tokens) if types[number] != UNUSED}
    if kind == "gpt2":
        state = _byte_level(vocabulary, metadata["tokenizer.ggml.merges"], str(metadata.get("tokenizer.ggml.pre")))
    else:
        unknown = tokens[named["unknown"] or 0]
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        state = _sentence_piece(vocabulary, metadata["tokenizer.ggml.scores"], unknown, prefix)
    state["added_tokens"] = [
        {
            "id": number, "content": tokens[number], "special": types[number] in (CONTROL, UNKNOWN),
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        }
        for number, type_ in enumerate(types)
        if type_ in (CONTROL, USER_DEFINED, UNKNOWN)
    ]  # fmt: skip
    begins = _adds(metadata, "bos", default=kind == "llama" or state["model"]["ignore_merges"])
    ends = _adds(metadata, "eos", default=False)
    state["post_processor"] = _post_processor(
        tokens, named["bos"] if begins else None, named["eos"] if ends else None, kind == "gpt2"
    )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    architecture = metadata.get("general.architecture")
    if context := metadata.get(f"{architecture}.context_length"):
        config["model_max_length"] = context
    config |= {NAMED[name]: tokens[number] for name, number in named.items() if number is not None}
    files: dict[str, Any] = {"tokenizer.json": state, "tokenizer_config.json": config}
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
        files["chat_template.jinja"] = template
    return files


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`generation_config.json`: the special tokens' ids, and every id at which llama.cpp stops."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    stops = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    stops += [number for number, token in enumerate(tokens) if token in END_NAMES and types[number] == CONTROL]
    found = [number for number in dict.fromkeys(stops) if number is not None]
    config: dict[str, Any] = {"eos_token_id": found if len(found) > 1 else found[0]} if found else {}
    for name, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if (number := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[key] = number
    return config


def tokenizer_metadata(path: Path, vocab_size: int) -> dict[str, Any]:
    """The metadata of the tokenizer in the directory `path`, padded to `vocab_size` tokens.

    Raises `UserError` for a tokenizer that llama.cpp would run differently, or more ends of a turn than GGUF names.
    """
    state, config = read_json(path / "tokenizer.json"), read_json(path / "tokenizer_config.json")
    fast = Tokenizer.from_str(json.dumps(state))
    if state["model"]["type"] != "BPE":
        raise UserError(f"{path}: a {state['model']['type']} vocabulary has no form in this export", _ELSE)
    vocabulary: dict[str, int] = fast.get_vocab(with_added_tokens=True)
    if max(vocabulary.values()) >= vocab_size:
        raise UserError(
            f"{path}: the tokenizer has ids up to {max(vocabulary.values())} and the model {vocab_size} rows",
            "put the tokenizer of this model beside its weights",
        )
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, number in vocabulary.items():
        tokens[number], types[number] = token, NORMAL
    for added in state.get("added_tokens") or ():
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    entries: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if state["model"].get("byte_fallback"):
        entries |= _sentence_piece_metadata(path, state, tokens, types)
    else:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
        entries |= {
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _name_of(path, state), "tokenizer.ggml.merges": merges
        }  # fmt: skip
    named = {key: _content(config.get(key)) for key in NAMED.values()}
    for name, key in NAMED.items():
        if named[key] is not None and named[key] in vocabulary:
            entries[f"tokenizer.ggml.{name}_token_id"] = vocabulary[str(named[key])]
    stops = _stops(path, entries.get("tokenizer.ggml.eos_token_id"), tokens)
    entries |= {f"tokenizer.ggml.{name}_token_id": number for name, number in zip(ENDS, stops, strict=False)}
    bare, whole = (fast.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    start = whole.index(bare[0])
    before, after = whole[:start], whole[start + len(bare) :]
    for name, found in (("bos", before), ("eos", after)):
        if found not in ([], [entries.get(f"tokenizer.ggml.{name}_token_id")]):
            raise UserError(f"{path}: the tokenizer puts tokens {found} around a text, which GGUF cannot say", _ELSE)
        entries[f"tokenizer.ggml.add_{name}_token"] = bool(found)
    file = path / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    if template:
        entries["tokenizer.chat_template"] = template
    return entries


_ELSE = "export to safetensors"


def _byte_level(vocabulary: dict[str, int], merges: list[str], name: str) -> dict[str, Any]:
    cut = CUTS.get(ALIASES.get(name, name))
    if cut is None:
        raise UserError(
            f"The file cuts text in the way {name!r}, which is not known here",
            f"use a model with one of {', '.join(sorted({*CUTS, *ALIASES}))}, or its checkpoint in safetensors",
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": cut.normalizer} if cut.normalizer else None,
        "pre_tokenizer": _sequence(cut),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, [merge.split(" ", 1) for merge in merges]) | {"ignore_merges": cut.whole_words},
    }


def _bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": vocabulary, "merges": merges,
    }  # fmt: skip


def _sentence_piece(vocabulary: dict[str, int], scores: list[float], unknown: str, prefix: bool) -> dict[str, Any]:
    """BPE with the merges that scores imply: of every way to cut a token in two, the better-scored token first."""
    ranked = sorted(vocabulary.items(), key=lambda item: (-scores[item[1]], item[1]))
    merges = []
    for token, _ in ranked:
        pairs = [(token[:k], token[k:]) for k in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += [list(pair) for pair in sorted(found, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*steps, *strip]},
        "model": _bpe(vocabulary, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _sentence_piece_metadata(path: Path, state: dict[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Scores from ids: SentencePiece numbers its tokens by falling score, which the merges must agree with."""
    numbers = {token: number for number, token in enumerate(tokens)}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in state["model"]["merges"]]
    made = [numbers["".join(merge)] for merge in merges]
    if state.get("pre_tokenizer") is not None or made != sorted(made):
        raise UserError(f"{path}: the merges are not in the order of the vocabulary, as SentencePiece has them", _ELSE)
    for number, token in enumerate(tokens):
        if types[number] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = BYTE
        elif token == state["model"].get("unk_token"):
            types[number] = UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(-number) if types[number] == NORMAL else 0.0 for number in range(len(tokens))],
        "tokenizer.ggml.add_space_prefix": "Prepend" in json.dumps(state.get("normalizer")),
    }


def _name_of(path: Path, state: dict[str, Any]) -> str:
    """The name of the way this tokenizer cuts text. Raises `UserError` when it is none that is known."""
    normalizer = (state.get("normalizer") or {}).get("type")
    if state.get("pre_tokenizer") is not None and normalizer in (None, "NFC"):
        whole_words, pieces = bool(state["model"].get("ignore_merges")), _pieces(state["pre_tokenizer"])
        for name, cut in CUTS.items():
            if cut.whole_words == whole_words and pieces == _pieces(_sequence(cut)):
                return name
    raise UserError(
        f"{path}: the tokenizer cuts text in a way that has no name in GGUF known here",
        f"use a tokenizer that cuts as {', '.join(CUTS)} do, or export to safetensors",
    )


def _sequence(cut: Cut) -> dict[str, Any]:
    return cut.steps[0] if len(cut.steps) == 1 else {"type": "Sequence", "pretokenizers": list(cut.steps)}


def _pieces(pre_tokenizer: dict[str, Any]) -> list[str]:
    """What a pre-tokenizer makes of the probe text."""
    cutter: Any = Tokenizer.from_str(json.dumps(_EMPTY | {"pre_tokenizer": pre_tokenizer})).pre_tokenizer
    return [piece for piece, _ in cutter.pre_tokenize_str(PROBE)]


_EMPTY: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "post_processor": None, "decoder": None, "model": _bpe({}, []),
}  # fmt: skip


def _stops(path: Path, eos: int | None, tokens: list[str]) -> list[int]:
    """Ids that end a turn, the tokenizer's own first; those that llama.cpp knows by name need no entry."""
    file = path / "generation_config.json"
    raw = {**read_json(path / "config.json"), **(read_json(file) if file.exists() else {})}.get("eos_token_id")
    listed = raw if isinstance(raw, list) else [] if raw is None else [raw]
    stops = list(dict.fromkeys(number for number in (eos, *listed) if number is not None))
    while len(stops) > len(ENDS):
        known = [number for number in stops[1:] if tokens[number] in END_NAMES]
        if not known:
            raise UserError(
                f"{path}: {len(stops)} tokens end a turn ({stops}) and GGUF names at most {len(ENDS)}",
                "keep the ones that the chat template writes in generation_config.json",
            )
        stops.remove(known[-1])
    return stops


def _adds(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    known = metadata.get(f"tokenizer.ggml.{name}_token_id") is not None
    return known and bool(metadata.get(f"tokenizer.ggml.add_{name}_token", default))


def _post_processor(tokens: list[str], bos: int | None, eos: int | None, byte_level: bool) -> dict[str, Any] | None:
    plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if bos is None and eos is None:
        return plain if byte_level else None

    def place(text: str, type_id: int) -> list[dict[str, Any]]:
        special = [
            [{"SpecialToken": {"id": tokens[number], "type_id": type_id}}] if number is not None else []
            for number in (bos, eos)
        ]
        return [*special[0], {"Sequence": {"id": text, "type_id": type_id}}, *special[1]]

    template = {
        "type": "TemplateProcessing",
        "single": place("A", 0),
        "pair": place("A", 0) + place("B", 1),
        "special_tokens": {
            tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
            for number in (bos, eos)
            if number is not None
        },
    }
    return {"type": "Sequence", "processors": [plain, template]} if byte_level else template


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token
