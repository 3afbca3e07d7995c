"""The tokenizer and chat template of any checkpoint, behind the interface of `model.tokenizer.Tokenizer`.

    tokenizer = load_tokenizer(path)                    # a StockTokenizer unless the special tokens are ours
    ids, mask = tokenizer.render_with_mask(messages)
    prompt = tokenizer.render(messages, add_generation_prompt=True, enable_thinking=False)

Reads tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja, without `transformers`. The
text is cut where the assistant starts and stops writing and encoded piece by piece, so a prompt has the same ids in
training as it had when it was sampled from. Not covered: tokenizers without a tokenizer.json.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.chat.template import GUARD, TODAY, ChatTemplate, Span
from loopline.chat.tokenizer import Message, Tokenizer, load_fast

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class StockTokenizer(Tokenizer):
    """Text to ids and back, and conversations to ids by the checkpoint's own chat template."""

    def __init__(
        self,
        fast: FastTokenizer,
        template: str | None = None,
        named: Mapping[str, str] | None = None,
        stop_ids: Sequence[int] = (),
        pad_id: int | None = None,
        today: datetime.date = TODAY,
    ) -> None:
        """`named` are special tokens by role (bos_token, ...), `stop_ids` those that end a turn besides eos_token."""
        self.fast = fast
        self.fast.no_padding()
        self.fast.no_truncation()
        named = dict(named or {})
        added = fast.get_added_tokens_decoder()
        end = fast.token_to_id(named["eos_token"]) if "eos_token" in named else None
        stops = [number for number in (end, *stop_ids) if number is not None]
        names = [name for name in map(fast.id_to_token, stops) if name]
        special = (token.content for _, token in sorted(added.items()) if token.special)
        self.controls = tuple(dict.fromkeys((*special, *named.values(), *names)))
        self._spelled = re.compile("|".join(map(re.escape, sorted(self.controls, key=len, reverse=True))) or "(?!)")
        self.template = None
        if template is not None:
            self.template = ChatTemplate(template, named, self.controls, names, today)
            found = [fast.token_to_id(stop) for stop in self.template.stops]
            stops += [number for number in found if number is not None]
        if not stops:
            raise UserError(
                "The tokenizer names no token that ends a text", "set eos_token in its tokenizer_config.json"
            )
        self._stop_ids = tuple(dict.fromkeys(stops))
        self._end_id = self._stop_ids[0] if end is None else end
        if pad_id is None and "pad_token" in named:
            pad_id = fast.token_to_id(named["pad_token"])
        self._pad_id = self._end_id if pad_id is None else pad_id
        # SentencePiece-like tokenizers put a space before every text, so pieces encoded alone give other ids.
        self.joins = self.encode("\n") + self.encode("a") == self.encode("\na")

    @classmethod
    def load(cls, path: Path) -> StockTokenizer:
        """Read the tokenizer in `path`. Raises `UserError` for what is missing, damaged or not a template."""
        config = _read(path, "tokenizer_config.json")
        listed = {**_read(path, "special_tokens_map.json"), **config}
        named = {name: _content(listed[name]) for name in NAMED_TOKENS if listed.get(name)}
        generation = {**_read(path, "config.json"), **_read(path, "generation_config.json")}
        ends = generation.get("eos_token_id")
        stops = ends if isinstance(ends, list) else [] if ends is None else [ends]
        file = path / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.exists() else _pick(config.get("chat_template"))
        try:
            pad = None if "pad_token" in named else generation.get("pad_token_id")
            return cls(load_fast(path), template, named, stops, pad)
        except UserError as error:
            raise UserError(f"{path}: {error.what}", error.fix) from error

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def end_id(self) -> int:
        return self._end_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn of the assistant: eos ids of the configs, and what the template closes turns with."""
        return self._stop_ids

    def encode_plain(self, text: str, marks: re.Pattern[str] | None = None) -> list[int]:
        """Ids of `text` in which control tokens (or `marks`) written out stay text."""
        return super().encode_plain(text, self._spelled if marks is None else marks)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **template_kwargs: Any
    ) -> list[int]:
        """Ids of a conversation; with `add_generation_prompt` it ends where the assistant is to write.

        `template_kwargs` (enable_thinking, tools, ...) go to the template.
        """
        return self.render_with_mask(messages, add_generation_prompt, exact=False, **template_kwargs)[0]

    def render_with_mask(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        name: str = "A conversation",
        exact: bool = True,
        **template_kwargs: Any,
    ) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether the assistant wrote it (its text and closing token, not its role mark).

        Raises `UserError` naming `name` when the template refuses the messages, or when it cannot be proved what the
        assistant wrote; `exact` false lets that pass, with a mask that says nothing.
        """
        if self.template is None:
            raise UserError("The tokenizer has no chat template", "put a chat_template.jinja beside its tokenizer.json")
        spans: list[Span] = []
        if any(message.get("role") == "assistant" for message in messages):
            try:
                text, spans = self.template.spans(messages, name, **template_kwargs)
            except UserError:
                if exact:
                    raise
        if add_generation_prompt or not spans:
            longer = self.template.text(messages, add_generation_prompt, name, **template_kwargs)
            if spans and not longer.startswith(text):
                spans = []
                if exact:
                    raise UserError(f"{name}: the template renders it differently with a generation prompt", "drop it")
            text = longer
        return self._encode_pieces(text, spans, name, exact)

    def _encode_pieces(self, text: str, spans: Sequence[Span], name: str, exact: bool) -> tuple[list[int], list[bool]]:
        """Ids and mask of a rendering, cut at the edges of `spans` and at every `GUARD`."""
        if not self.joins:
            return self._encode_whole(text, spans, name, exact)
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        starts = {start for start, _ in spans}
        ids: list[int] = []
        mask: list[bool] = []
        for start, end in pairwise(edges):
            for piece in text[start:end].split(GUARD):
                new = self.encode(piece)
                ids += new
                mask += [start in starts] * len(new)
        return ids, mask

    def _encode_whole(self, text: str, spans: Sequence[Span], name: str, exact: bool) -> tuple[list[int], list[bool]]:
        """The same where pieces cannot be encoded alone; `UserError` where a token crosses the edge of a span."""
        if GUARD in text:
            raise UserError(f"{name} spells a control token, which this tokenizer cannot keep as text", "drop the row")
        encoded = self.fast.encode(text, add_special_tokens=False)
        mask = []
        for start, end in encoded.offsets:
            inside = any(a <= start and end <= b for a, b in spans)
            if exact and not inside and any(start < b and end > a for a, b in spans):
                raise UserError(
                    f"{name}: the token of {text[start:end]!r} is partly the assistant's and partly the template's",
                    "drop the row, or use a template with a control token before the assistant's text",
                )
            mask.append(inside and end > start)
        return encoded.ids, mask


def _read(path: Path, name: str) -> dict[str, Any]:
    value = read_json(path / name) if (path / name).exists() else {}
    return value if isinstance(value, dict) else {}


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _pick(template: Any) -> str | None:
    """The template of a config: a text, or the one called "default" of a list."""
    if isinstance(template, list):
        by_name = {item["name"]: item["template"] for item in template}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
