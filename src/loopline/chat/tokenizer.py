"""The tokenizer of a checkpoint directory, and the chat format.

    tokenizer = Tokenizer.load(directory)
    ids = tokenizer.render([{"role": "user", "content": "12+5=?"}], add_generation_prompt=True)

    message = tokenizer.parse(completion_ids, prompt=ids)                      # content, reasoning, tool calls
    more = tokenizer.continuation(messages, [{"role": "tool", "content": "17"}])    # ids to append after the answer

A conversation is `<|role|>` and its text for each turn; assistant turns close with `<|end|>`, which also separates
documents. Reasoning is in `<think>...</think>` at the beginning of a turn, tool calls in the Hermes form. Special
tokens that somebody writes out in a text stay text: users, systems and tools can forge none of them, and assistants
none of the role tokens. The same rendering is written as a Jinja chat template, so `transformers` renders the same ids
for texts without such forgeries, which a template cannot know from its own tokens.
Not covered: training a tokenizer (see `corpus.tokenizer`), templates of other model families (see
`chat.stock_tokenizer`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.chat.continuation import Continuation, Rewritten
from loopline.chat.forms import hermes
from loopline.chat.forms.form import CallForm, schemas
from loopline.chat.message import AssistantMessage, Message, calls_of, text_of
from loopline.chat.parser import OWN, OutputParser, parse_output
from loopline.chat.thinking import THINK as THINK_TEXT
from loopline.chat.thinking import THINK_END as THINK_END_TEXT
from loopline.chat.thinking import answer_text, prompt_thinking

PAD, END, SYSTEM, USER, ASSISTANT, TOOL, THINK, THINK_END, CALL, CALL_END = range(10)
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    THINK_TEXT,
    THINK_END_TEXT,
    hermes.OPEN,
    hermes.CLOSE,
)
ROLE_IDS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
STRUCTURE_MARKS = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS if token.startswith("<|")))
"""The special tokens that not even an assistant writes in its text: roles, the end and padding."""
Tools = Sequence[Mapping[str, Any]]


def is_ours(path: Path) -> bool:
    """Whether `path` holds a tokenizer with the ten special tokens at their ids."""
    added = read_json(path / "tokenizer.json").get("added_tokens") or []
    return {token["content"]: token["id"] for token in added if token["id"] < len(SPECIAL_TOKENS)} == {
        token: number for number, token in enumerate(SPECIAL_TOKENS)
    }


def load_fast(path: Path) -> FastTokenizer:
    """Read `tokenizer.json` in `path`. Raises `UserError` when it is missing or damaged."""
    file = path / "tokenizer.json"
    if not file.exists():
        raise UserError(f"{path} has no tokenizer.json", "point at a checkpoint or tokenizer directory")
    try:
        return FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file} is not a tokenizer ({error})", "write the tokenizer again") from error


class Tokenizer:
    """Text to ids and back, and conversations to ids with the mask of what the assistant wrote."""

    def __init__(self, fast: FastTokenizer) -> None:
        self.fast = fast
        # Padding and truncation belong to batches, never to a text.
        self.fast.no_padding()
        self.fast.no_truncation()
        for number, token in enumerate(SPECIAL_TOKENS):
            if fast.token_to_id(token) != number:
                raise UserError(
                    f"The tokenizer gives {token} the id {fast.token_to_id(token)} instead of {number}",
                    "train the tokenizer with `loopline run`, which puts the special tokens first",
                )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json` in `path`. Raises `UserError` when it is missing or damaged."""
        return cls(load_fast(path))

    @property
    def vocab_size(self) -> int:
        return self.fast.get_vocab_size()

    @property
    def pad_id(self) -> int:
        return PAD

    @property
    def end_id(self) -> int:
        return END

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn of the assistant."""
        return (END,)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written out in the text become their ids."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str, marks: re.Pattern[str] = MARKS) -> list[int]:
        """Ids of `text` in which special tokens (`marks`) written out stay text; they decode to `text` too."""
        ids: list[int] = []
        start = 0
        for match in marks.finditer(text):
            # A cut inside the special token keeps the tokenizer from matching it.
            middle = match.start() + 1
            ids += self.encode(text[start:middle])
            start = middle
        return ids + self.encode(text[start:])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, in parallel."""
        return [item.ids for item in self.fast.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of `ids`. `skip_special` leaves out all ten special tokens, thinking tokens included."""
        return self.fast.decode(list(ids), skip_special_tokens=skip_special)

    @property
    def form(self) -> CallForm:
        """The form in which this checkpoint writes tool calls."""
        return OWN

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """Ids of a conversation; with `add_generation_prompt` it ends where the assistant is to write.

        `tools` (in OpenAI's form) are offered in a system turn. `enable_thinking` true or false opens, or opens and
        closes, the thinking part in the generation prompt; left out, the policy decides. Further template settings mean
        nothing to this format.
        """
        ids = self.render_with_mask(messages, add_generation_prompt, tools=tools)[0]
        thinking = enable_thinking if add_generation_prompt else None
        return ids if thinking is None else [*ids, THINK] if thinking else [*ids, THINK, THINK_END]

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
        """Ids, and for each whether the assistant wrote it (its text and closing token, not its role token).

        `name` is what errors call the conversation. Assistant turns from message `trained_from` on are trained on:
        where a template loses or changes their text it is a `UserError`, unless `allow` names what may be lost
        ("content", "reasoning", "tool_calls"). This format loses nothing.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for message in self._offering(messages, tools):
            role = message["role"]
            if role not in ROLE_IDS:
                raise UserError(f"{name} has a message with the role {role!r}", f"use one of {', '.join(ROLE_IDS)}")
            wrote = role == "assistant"
            text = self._written(message) if wrote else text_of(message["content"], "content")
            written = self.encode_plain(text, STRUCTURE_MARKS if wrote else MARKS)
            if wrote:
                written = [*written, END]
            ids += [ROLE_IDS[role], *written]
            mask += [False] + [wrote] * len(written)
        if add_generation_prompt:
            ids.append(ASSISTANT)
            mask.append(False)
        return ids, mask

    def as_shown(self, messages: Sequence[Message], tools: Tools | None = None) -> tuple[list[Message], Tools | None]:
        """The messages and tools that the chat template gets: what it cannot render is in the texts."""
        shown = [
            {"role": message["role"], "content": self._written(message)} if message["role"] == "assistant" else message
            for message in self._offering(messages, tools)
        ]
        return shown, None

    def _offering(self, messages: Sequence[Message], tools: Tools | None) -> Sequence[Message]:
        """The messages after a system turn with the schemas of `tools`, one a line."""
        if not tools:
            return messages
        listed = [json.dumps(tool.get("function", tool), ensure_ascii=False, sort_keys=True) for tool in tools]
        return [{"role": "system", "content": "\n".join(["Tools:", *listed])}, *messages]

    def _written(self, message: Message) -> str:
        """The text of an assistant turn: its reasoning, its words and its calls."""
        reasoning, calls = message.get("reasoning_content"), calls_of(message)
        head = f"{THINK_TEXT}{reasoning}{THINK_END_TEXT}" if reasoning else ""
        return head + text_of(message.get("content"), "content") + (self.form.write(calls) if calls else "")

    def continuation(
        self,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
        closed: bool = True,
    ) -> Continuation | Rewritten:
        """What follows a sampled answer so that `new` messages follow it and the assistant writes again.

        `messages` end with the answer, taken apart; its sampled ids stay as they are. `closed` says whether they end
        with a stop token. A template that renders earlier turns otherwise once later ones exist gives `Rewritten`;
        this format never does. Raises `UserError` for messages that the template refuses.
        """
        more = self.render(new, True, enable_thinking=enable_thinking)
        return Continuation(more if closed else [self.end_id, *more])

    def answer_text(self, ids: Sequence[int], prompt: Sequence[int] = (), stop_text: str | None = None) -> str:
        """The text of a sampled answer as graders read it, up to the stop token or the stop text.

        It begins with what `prompt` wrote of its thinking part: see `chat.thinking.answer_text`.
        """
        return answer_text(self, prompt, ids, stop_text)

    def parse(
        self, output: str | Sequence[int], tools: Tools | None = None, prompt: Sequence[int] = ()
    ) -> AssistantMessage:
        """An answer, taken apart: its sampled ids with the `prompt` before them, or its text."""
        text = output if isinstance(output, str) else self.answer_text(output, prompt)
        return parse_output(text, self.form, schemas(tools))

    def parser(self, prompt: Sequence[int] = (), tools: Tools | None = None, calls: bool = True) -> OutputParser:
        """The parser of an answer that arrives in pieces; `calls` false leaves tool calls as text."""
        return OutputParser(self.form, schemas(tools), calls, prompt_thinking(self, prompt))
