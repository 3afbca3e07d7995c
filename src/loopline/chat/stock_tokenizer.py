"""The tokenizer and chat template of any checkpoint, behind the interface of `chat.tokenizer.Tokenizer`.

    tokenizer = load_tokenizer(path)                    # a StockTokenizer unless the special tokens are ours
    ids, mask = tokenizer.render_with_mask(messages)
    prompt = tokenizer.render(messages, add_generation_prompt=True, enable_thinking=False)

Reads tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja, without `transformers`. The
text is cut where the assistant starts and stops writing and encoded piece by piece, so a prompt has the same ids in
training as it had when it was sampled from. What the template cannot render is written into the messages' texts (see
`chat.abilities`); what of a trained turn it loses is an error. Not covered: tokenizers without a tokenizer.json.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.chat.abilities import Abilities
from loopline.chat.continuation import Continuation, Rewritten
from loopline.chat.forms.detect import detect_form
from loopline.chat.forms.form import CallForm
from loopline.chat.message import Message, calls_of
from loopline.chat.parser import parse_output
from loopline.chat.template import GUARD, TODAY, ChatTemplate, Span
from loopline.chat.thinking import THINK, THINK_END, read_thinking, wrote_thinking
from loopline.chat.tokenizer import Tokenizer, Tools, load_fast

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KINDS = {str: "string"}
"""What a schema calls the arguments that some forms write as they are; others are JSON."""


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
        self._form = detect_form(template, [token.content for token in added.values()])
        if template is not None:
            inner = (THINK, THINK_END, *self._form.opens, *self._form.tags)
            self.template = ChatTemplate(template, named, self.controls, names, today, inner)
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
    def load(cls, path: Path, today: datetime.date = TODAY) -> StockTokenizer:
        """Read the tokenizer in `path`; `today` is the date that its template gets.

        Raises `UserError` for what is missing, damaged or not a template.
        """
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
            return cls(load_fast(path), template, named, stops, pad, today)
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
        """Ids of `text` in which special tokens (or `marks`) written out stay text."""
        return super().encode_plain(text, self._spelled if marks is None else marks)

    @property
    def form(self) -> CallForm:
        return self._form

    @cached_property
    def abilities(self) -> Abilities:
        """What the template can render by itself."""
        return Abilities.of(self._require_template(), self._form)

    def _require_template(self) -> ChatTemplate:
        if self.template is None:
            raise UserError("The tokenizer has no chat template", "put a chat_template.jinja beside its tokenizer.json")
        return self.template

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """Ids of a conversation; with `add_generation_prompt` it ends where the assistant is to write.

        `tools` (in OpenAI's form) are offered where the template has a place for them, else in the system turn.
        `enable_thinking` and further `template_kwargs` go to the template.
        """
        if enable_thinking is not None:
            template_kwargs["enable_thinking"] = enable_thinking
        return self._render(messages, add_generation_prompt, "A conversation", False, tools, template_kwargs)[0]

    def render_with_mask(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        name: str = "A conversation",
        tools: Tools | None = None,
        trained_from: int = 0,
        allow: Collection[str] = (),
        **template_kwargs: Any,
    ) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether the assistant wrote it (its text and closing token, not its role tokens).

        Raises `UserError` naming `name` when the template refuses the messages, when it cannot be proved what the
        assistant wrote, or when an assistant turn from message `trained_from` on loses text that `allow` does not name
        ("content", "reasoning", "tool_calls").
        """
        ids, mask, turns = self._render(messages, add_generation_prompt, name, True, tools, template_kwargs)
        numbers = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
        if len(numbers) != len(turns):
            raise UserError(
                f"{name}: the chat template shows {len(turns)} of {len(numbers)} turns of the assistant",
                "fix the template, or drop the row",
            )
        for number, turn in zip(numbers, turns, strict=True):
            missing = lost_parts(messages[number], turn, self._form) if number >= trained_from else []
            for part in [part for part in missing if part not in allow]:
                raise UserError(
                    f"{name}: the chat template drops or changes the {part} of message {number}",
                    f"split the row so that each trained turn comes last, drop it, or allow the loss by name ({part})",
                )
        return ids, mask

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        name: str,
        exact: bool,
        tools: Tools | None,
        settings: dict[str, Any],
    ) -> tuple[list[int], list[bool], list[str]]:
        """Ids, mask, and the texts of the assistant's turns; unless `exact`, what cannot be proved has no mask."""
        template = self._require_template()
        ready, shown = self._prepare(messages, tools)
        if shown:
            settings = {**settings, "tools": shown}
        spans: list[Span] = []
        text = ""
        if any(message.get("role") == "assistant" for message in ready):
            try:
                text, spans = template.spans(ready, name, **settings)
            except UserError:
                if exact:
                    raise
        turns = [template.without_stop(text[start:end]) for start, end in spans]
        if add_generation_prompt or not spans:
            longer = template.text(ready, add_generation_prompt, name, **settings)
            if spans and not longer.startswith(text):
                spans = []
                if exact:
                    raise UserError(f"{name}: the template renders it differently with a generation prompt", "drop it")
            text = longer
        return *self._encode_pieces(text, spans, name, exact), turns

    def as_shown(self, messages: Sequence[Message], tools: Tools | None = None) -> tuple[list[Message], Tools | None]:
        return self._prepare(messages, tools)

    def _prepare(self, messages: Sequence[Message], tools: Tools | None) -> tuple[list[Message], Tools | None]:
        # Plain conversations need no trying out of the template.
        plain = not tools and not any(
            {"tool_calls", "reasoning_content"} & set(message) or message.get("role") in ("tool", "system")
            for message in messages
        )
        return (list(messages), None) if plain else self.abilities.prepare(messages, tools, self._form)

    def continuation(
        self,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
        closed: bool = True,
    ) -> Continuation | Rewritten:
        template = self._require_template()
        settings: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        turns = [self._structured(message, tools) for message in messages]
        ready, shown = self._prepare([*turns, *new], tools)
        before, _ = self._prepare(turns[:-1], tools)
        if shown:
            settings["tools"] = shown
        prompt = template.text(before, True, **settings)
        whole = template.text(ready, True, **settings)
        shorter, spans = template.spans(ready, **settings)
        start, end = spans[sum(message["role"] == "assistant" for message in turns) - 1]
        said = template.without_stop(whole[start:end])
        reason = ""
        if not whole.startswith(prompt) or not whole.startswith(shorter):
            reason = "what comes before the answer is rendered otherwise once more turns follow it"
        elif THINK in str(messages[-1].get("content")) and THINK not in said:
            reason = "the answer loses its thinking part once more turns follow it"
        elif missing := lost_parts(turns[-1], said, self._form):
            reason = f"the answer loses its {' and '.join(missing)} once more turns follow it"
        elif wrote_thinking(prompt) and wrote_thinking(prompt) != wrote_thinking(whole[:start]):
            reason = "the thinking part that the prompt began is rendered otherwise once more turns follow"
        if reason:
            return Rewritten(
                self.render([*turns, *new], True, tools, enable_thinking), f"In the chat template {reason}"
            )
        if not closed:
            end -= next((len(stop) for stop in template.stops if whole[:end].endswith(stop)), 0)
        return Continuation(self._encode_pieces(whole[end:], [], "A continuation", False)[0])

    def _structured(self, message: Message, tools: Tools | None) -> Message:
        """An assistant turn that is text alone, taken apart as the template takes it."""
        if message["role"] != "assistant" or message.get("tool_calls") or message.get("reasoning_content"):
            return message
        said = self.parse(str(message.get("content") or ""), tools)
        return message if said.malformed else said.to_openai()

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


def lost_parts(message: Message, turn: str, form: CallForm) -> list[str]:
    """Which parts of an assistant's message are missing from its rendered `turn`; white space at their ends is free."""
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content]
    reasoning = str(message.get("reasoning_content") or "")
    if not reasoning and isinstance(content, str):
        found = read_thinking(content)
        if found.problem is None:
            reasoning, texts = found.reasoning or "", [found.answer or ""]
    missing = ["content"] if any(text.strip() not in turn for text in texts) else []
    if reasoning.strip() not in turn:
        missing.append("reasoning")
    calls = calls_of(message)
    if calls:
        kinds = [
            {k: {"type": "string" if isinstance(v, str) else "object"} for k, v in c.arguments.items()} for c in calls
        ]
        types = {call.name: {"properties": each} for call, each in zip(calls, kinds, strict=True)}
        if parse_output(turn, form, types).tool_calls != tuple(calls):
            missing.append("tool_calls")
    return missing
