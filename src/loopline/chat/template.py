"""Chat templates of other model families, and which of the rendered text the assistant wrote.

    template = ChatTemplate(source, {"bos_token": "<s>"}, controls=("<|im_start|>", "<|im_end|>"), stops=["<|im_end|>"])
    text, spans = template.spans(messages)

Templates run in Jinja's sandbox with the helpers that their authors count on. A template that wraps the assistant's
text with `{% generation %}` is trusted. For any other the spans are derived, and every step is checked against the
whole rendering: a turn starts where the rendering of what came before it, asked for a generation prompt, ends (or,
where the template rewrites history, after the generation prompt found between the neighbouring messages), and it ends
with the first stop token after its text. Where messages are is found by wrapping their texts in characters of no
meaning, which must change nothing else. What cannot be verified is refused. Control tokens written out in a message
stay text: a `GUARD` inside keeps the tokenizer from seeing them. `strftime_now` gives one fixed day, or a run could not
be repeated. Not covered: templates that run code outside the sandbox, documents for retrieval.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from loopline.base.errors import UserError

GUARD, START, END = "\U0010fff2", "\U0010fff0", "\U0010fff1"
"""Characters of the last private plane: inside a control token that a message spells; around `{% generation %}`."""
FIRST_MARK = 0xF0000
"""Character around the text of message k: this + 2 k before it, + 2 k + 1 after it."""
RESERVED = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
TODAY = datetime.date(2024, 7, 26)
THINK, THINK_END = "<think>", "</think>"

Message = Mapping[str, Any]
Span = tuple[int, int]


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: puts START and END around what the assistant wrote."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return START + caller() + END


def build_environment(today: datetime.date) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox that chat templates are written for."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = today.strftime
    return environment


@dataclass(frozen=True)
class Places:
    """Where a message's text is in the rendering."""

    begin: int
    end: int


class ChatTemplate:
    """One template, compiled."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        controls: Sequence[str],
        stops: Sequence[str],
        today: datetime.date = TODAY,
        inner: Sequence[str] = (),
    ) -> None:
        """`variables` are those of the tokenizer (bos_token, ...), `controls` its control tokens, `stops` the tokens
        that end a turn, `inner` control tokens that the assistant's text may hold: around thoughts and calls.

        Raises `UserError` when the template has a syntax error.
        """
        try:
            self.template = build_environment(today).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"The chat template has a syntax error in line {error.lineno} ({error.message})", "fix the template"
            ) from error
        self.variables = dict(variables)
        self.marked = re.search(r"\{%[-+]?\s*generation\b", source) is not None
        self.controls = tuple(sorted(controls, key=lambda token: (-len(token), token)))
        self._spelled = re.compile("|".join(map(re.escape, self.controls)) or "(?!)")
        outer = [token for token in self.controls if token not in inner]
        self._forged = re.compile("|".join(map(re.escape, outer)) or "(?!)")
        """What an assistant may not write."""
        self.stops = tuple(dict.fromkeys(stops))
        self.stops += self._closing()

    def text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        name: str = "A conversation",
        **settings: Any,
    ) -> str:
        """The rendering, with a `GUARD` inside every control token that a message spells."""
        return self._plain(self._render(self._guarded(messages, name), add_generation_prompt, name, settings))

    def attempt(self, messages: Sequence[Message], prompt: bool = False, **settings: Any) -> str | None:
        """The rendering as in `text`; None when the template refuses it."""
        try:
            return self.text(messages, prompt, **settings)
        except UserError:
            return None

    def without_stop(self, text: str) -> str:
        """A turn of the assistant as in `spans`, without its closing token and without guards."""
        stop = next((stop for stop in self.stops if text.endswith(stop)), "")
        return text.removesuffix(stop).replace(GUARD, "")

    def spans(
        self, messages: Sequence[Message], name: str = "A conversation", **settings: Any
    ) -> tuple[str, list[Span]]:
        """The rendering as in `text`, and where in it the assistant's turns are, each with its closing token.

        Raises `UserError` naming `name` when the template refuses the messages, or when it cannot be proved what of its
        rendering the assistant wrote.
        """
        guarded = self._guarded(messages, name)
        rendered = self._render(guarded, False, name, settings)
        if self.marked:
            return _read_marks(rendered)
        whole = self._plain(rendered)
        places = self._places(guarded, whole, name, settings)
        spans = [
            self._turn(guarded, number, whole, places, name, settings)
            for number, message in enumerate(guarded)
            if message["role"] == "assistant"
        ]
        if any(start >= end for start, end in spans) or any(one[1] > other[0] for one, other in pairwise(spans)):
            raise _unproved(name, "the turns of the assistant overlap")
        return whole, spans

    def _turn(
        self,
        messages: list[dict[str, Any]],
        number: int,
        whole: str,
        places: dict[int, Places],
        name: str,
        settings: Mapping[str, Any],
    ) -> Span:
        """Where the assistant's turn `number` starts and ends in `whole`."""
        place = places.get(number)
        before = self._try(messages[:number], True, settings)
        after = min((places[k].begin for k in places if k > number), default=len(whole))
        if before is not None and whole.startswith(before):
            start = len(before)
            if place is None:
                # Nothing to find, as in an empty answer: then what comes before the next message must say it all.
                upto = self._try(messages[: number + 1], False, settings)
                if upto is None or not upto.startswith(before):
                    raise _unproved(name, f"the text of message {number} is not found")
                end = self._stop(upto, start, len(upto))
                if end > 0 and whole.startswith(upto[:end]):
                    return start, end
                raise _unproved(name, f"message {number} is rendered differently in a longer conversation")
        elif place is not None:
            since = max((places[k].end for k in places if k < number), default=0)
            start = self._header_end(messages[:number], before, whole, (since, place.begin), settings)
            if start < 0:
                raise _unproved(name, f"message {number} does not follow the generation prompt")
        else:
            raise _unproved(name, f"the text of message {number} is not found")
        # Control tokens in messages are guarded, so the first stop token after the text is the template's own.
        end = self._stop(whole, place.end, after)
        if end < 0 or place.end < start:
            raise _unproved(name, f"no stop token closes message {number} (stop tokens: {', '.join(self.stops)})")
        return start, end

    def _stop(self, text: str, start: int, end: int) -> int:
        """End of the first stop token in text[start:end]; -1 for none."""
        found = [(where, -len(stop)) for stop in self.stops if (where := text.find(stop, start, end)) >= 0]
        return min(found)[0] - min(found)[1] if found else -1

    def _header_end(
        self,
        before: list[dict[str, Any]],
        prompt: str | None,
        whole: str,
        gap: Span,
        settings: Mapping[str, Any],
    ) -> int:
        """End of the one generation prompt in whole[gap], where the template has rewritten what precedes; -1 for none.

        A prompt that opens or fills the thinking block is also looked for without it: history often lacks one.
        """
        base = self._try(before, False, settings)
        if prompt is None or base is None or not prompt.startswith(base):
            question = [{"role": "user", "content": "a"}]
            prompt, base = self._try(question, True, settings), self._try(question, False, settings)
        if prompt is None or base is None or not prompt.startswith(base):
            return -1
        header = prompt[len(base) :]
        for candidate in (header, header.partition(THINK)[0]):
            if candidate and whole.count(candidate, *gap) == 1:
                return whole.index(candidate, *gap) + len(candidate)
        return -1

    def _places(
        self, messages: list[dict[str, Any]], whole: str, name: str, settings: Mapping[str, Any]
    ) -> dict[int, Places]:
        """Where messages' texts are in `whole`: all at once, or, if the markers changed anything, those that can."""
        numbers = [number for number in range(len(messages)) if _mark(messages[number], number) is not None]
        found = self._place_some(messages, numbers, whole, settings)
        if found is None:
            each = [(number, self._place_some(messages, [number], whole, settings)) for number in numbers]
            found = self._place_some(messages, [number for number, place in each if place], whole, settings)
        return found or {}

    def _place_some(
        self, messages: list[dict[str, Any]], numbers: Sequence[int], whole: str, settings: Mapping[str, Any]
    ) -> dict[int, Places] | None:
        """Where the texts of `numbers` are; None when the markers around them change anything else of the rendering."""
        chosen = set(numbers)
        marked = [_mark(m, k) or m if k in chosen else m for k, m in enumerate(messages)]
        rendered = self._try(marked, False, settings)
        if rendered is None:
            return None
        plain: list[str] = []
        seen: dict[int, list[int]] = {}
        length = start = 0
        for match in RESERVED.finditer(rendered):
            if match[0] == GUARD:
                continue
            plain.append(rendered[start : match.start()])
            length += match.start() - start
            seen.setdefault(ord(match[0]) - FIRST_MARK, []).append(length)
            start = match.end()
        if "".join(plain) + rendered[start:] != whole:
            return None
        # A text that is rendered twice, or whose end was cut off, has no one place.
        pairs = {number: (seen.get(2 * number, []), seen.get(2 * number + 1, [])) for number in numbers}
        return {k: Places(a[0], b[0]) for k, (a, b) in pairs.items() if len(a) == len(b) == 1 and a[0] <= b[0]}

    def _closing(self) -> tuple[str, ...]:
        """The control token that closes every turn of the assistant, where none of the known stop tokens does.

        Chat templates on base models have one: the tokenizer's end is that of documents.
        """
        messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
        marked = [_mark(message, number) or message for number, message in enumerate(messages)]
        rendered = self._try(marked, False, {}) or ""
        # What follows the first answer (up to the next question) and what follows the last.
        ends = [rendered.partition(chr(FIRST_MARK + 2 * number + 1))[2] for number in (1, 3)]
        tails = [ends[0].partition(chr(FIRST_MARK + 4))[0], ends[1]]
        first, last = (self._spelled.search(tail) for tail in tails)
        if first is None or last is None or first[0] != last[0] or any(stop in tails[0] for stop in self.stops):
            return ()
        return (first[0],)

    def _guarded(self, messages: Sequence[Message], name: str) -> list[dict[str, Any]]:
        """Copies of the messages in which no control token is spelled. Raises `UserError` for reserved characters."""

        def guard(value: Any, spelled: re.Pattern[str]) -> Any:
            if isinstance(value, str):
                if RESERVED.search(value):
                    raise UserError(
                        f"{name} holds a character of Unicode's private planes", "drop that character, or the row"
                    )
                return spelled.sub(lambda match: match[0][0] + GUARD + match[0][1:], value)
            if isinstance(value, Mapping):
                return {key: guard(item, spelled) for key, item in value.items()}
            return [guard(item, spelled) for item in value] if isinstance(value, list | tuple) else value

        if any("role" not in message for message in messages):
            raise UserError(f"{name} has a message without a role", "give each message a role and a content")
        return [
            {
                key: item if key == "role" else guard(item, self._forged if m["role"] == "assistant" else self._spelled)
                for key, item in m.items()
            }
            for m in messages
        ]

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool, name: str, settings: Mapping[str, Any]
    ) -> str:
        values = {"tools": None, "documents": None, **self.variables, **settings}
        try:
            return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
            raise UserError(f"{name}: the chat template refuses it ({error})", "correct or drop the row") from error

    def _try(self, messages: Sequence[Message], prompt: bool, settings: Mapping[str, Any]) -> str | None:
        """A rendering of a part, or of a changed copy; None when the template refuses that."""
        try:
            return self._plain(self._render(messages, prompt, "", settings))
        except UserError:
            return None

    @staticmethod
    def _plain(text: str) -> str:
        return text.replace(START, "").replace(END, "")


def _mark(message: Message, number: int) -> dict[str, Any] | None:
    """A copy with markers of `number` around its text or the names of its tool calls; None where neither is possible.

    White space at the edges and the thinking block stay outside, since templates trim the one and move the other.
    """
    before, after = chr(FIRST_MARK + 2 * number), chr(FIRST_MARK + 2 * number + 1)

    def wrap(text: str, opens: bool, closes: bool) -> str:
        hidden, mark, shown = text.rpartition(THINK_END) if message.get("role") == "assistant" else ("", "", text)
        core = shown.strip()
        left, _, right = shown.partition(core)
        return hidden + mark + left + before * opens + core + after * closes + right

    content = message.get("content")
    if isinstance(content, str) and content.rpartition(THINK_END)[2].strip():
        return {**message, "content": wrap(content, True, True)}
    if isinstance(content, list):
        parts = [k for k, part in enumerate(content) if isinstance(part, Mapping) and str(part.get("text", "")).strip()]
        if parts:
            marked = list(content)
            for k in parts:
                marked[k] = {**content[k], "text": wrap(content[k]["text"], k == parts[0], k == parts[-1])}
            return {**message, "content": marked}
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        named = [dict(call) for call in calls]
        for k, call in enumerate(named):
            inner = dict(call["function"]) if "function" in call else call
            opened, closed = before if k == 0 else "", after if k == len(named) - 1 else ""
            inner["name"] = f"{opened}{inner['name']}{closed}"
            if "function" in call:
                call["function"] = inner
        return {**message, "tool_calls": named}
    # Whether a template treats an empty text like one of markers alone shows in what it renders.
    return {**message, "content": before + after} if content == "" else None


def _read_marks(rendered: str) -> tuple[str, list[Span]]:
    """A rendering without START and END, and the spans between them that are not empty."""
    plain: list[str] = []
    spans: list[Span] = []
    length = start = opened = 0
    for match in re.finditer(f"[{START}{END}]", rendered):
        plain.append(rendered[start : match.start()])
        length += match.start() - start
        start = match.end()
        if match[0] == START:
            opened = length
        elif length > opened:
            spans.append((opened, length))
    plain.append(rendered[start:])
    return "".join(plain), spans


def _unproved(name: str, reason: str) -> UserError:
    return UserError(
        f"{name}: what the assistant wrote cannot be told from the rest of what the chat template renders ({reason})",
        "mark the assistant's text in the template with {% generation %}...{% endgeneration %}, or drop the row",
    )
