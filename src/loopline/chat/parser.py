"""The one parser of answers: text that arrives in pieces becomes reasoning, content and tool calls.

    parser = OutputParser(form, schemas(tools))
    for piece in pieces:
        events += parser.feed(piece)        # ("reasoning", text), ("content", text), ("tool_call", Call)
    events += parser.close()
    message = parser.message                # an AssistantMessage

Where the pieces are cut never changes the result. What is out of form stays content, tags included, so that nothing the
model wrote is lost, and is listed in `message.malformed`: a call that cannot be read, and any thinking tag after the
first pair or after the answer began (see `chat.thinking`). Line breaks between reasoning, content and calls belong to
none of them. Not covered: stop tokens (cut them off before).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas
from loopline.chat.forms.hermes import Hermes
from loopline.chat.message import AssistantMessage, Message, calls_of, text_of
from loopline.chat.thinking import THINK, THINK_END

Kind = Literal["reasoning", "content", "tool_call"]
Event = tuple[Kind, str | Call]
State = Literal["start", "reasoning", "content", "section"]
OWN = Hermes()
"""The form of our own chat format, and of calls in recorded texts."""


class OutputParser:
    """Takes one answer apart."""

    def __init__(self, form: CallForm, schemas: Schemas | None = None, tools: bool = True, before: str = "") -> None:
        """`tools` false leaves calls as text; `before` is what the prompt wrote of the thinking part."""
        self.form, self.schemas, self.tools = form, schemas, tools
        self.opens = form.opens if tools else ()
        self.first = form.opens_first if tools and schemas is not None else ()
        self._state: State = "start"
        self._buffer = ""
        self._breaks = ""
        """Line breaks held back: they belong to nothing when a call or the end of thinking follows."""
        self._quiet = True
        """Whether line breaks are dropped: before anything else of a part."""
        self._thought = False
        self._parts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._calls: list[Call] = []
        self._malformed: list[str] = []
        self.feed(before)

    @property
    def message(self) -> AssistantMessage:
        """What has been read so far."""
        content, reasoning = ("".join(self._parts[kind]) for kind in ("content", "reasoning"))
        malformed = list(self._malformed)
        if self.tools and not any(problem.startswith("tool call") for problem in malformed):
            malformed += [f"tool call: {tag} closes nothing" for tag in self.form.strays if tag in content]
        return AssistantMessage(content, reasoning, tuple(self._calls), tuple(malformed))

    def feed(self, text: str) -> list[Event]:
        """Take more text; returns what is already certain. A call comes whole."""
        self._buffer += text
        events: list[Event] = []
        while self._step(events, False):
            pass
        return events

    def close(self) -> list[Event]:
        """The rest, when no more text will come."""
        events: list[Event] = []
        while self._step(events, True):
            pass
        if self._breaks and self._state != "reasoning":
            self._emit(events, "content", self._breaks)
        self._breaks = ""
        return events

    def _step(self, events: list[Event], final: bool) -> bool:
        """One step; whether another may follow."""
        if self._state == "start":
            return self._begin(final)
        if self._state == "section":
            return self._section(events, final)
        return self._text(events, final)

    def _begin(self, final: bool) -> bool:
        """Before anything but white space: thinking may open here."""
        text = self._buffer.lstrip()
        if text.startswith(THINK):
            self._buffer, self._state, self._thought = text[len(THINK) :], "reasoning", True
            return True
        if not final and any(opening.startswith(text) for opening in (THINK, *self.first)):
            return False
        self._state, self._quiet = "content", False
        self._opens_first(text)
        return True

    def _opens_first(self, text: str) -> bool:
        """At the beginning of the content, where more texts may open a section: whether one does."""
        opens = any(text.startswith(opening) for opening in self.first)
        if opens:
            self._buffer, self._state = text, "section"
        return opens

    def _text(self, events: list[Event], final: bool) -> bool:
        """Reasoning or content, up to the next tag or the next section."""
        if self._quiet and self._state == "content":
            # The content after a thinking block begins at its first character that is no line break.
            text = self._buffer.lstrip()
            waits = not text or any(opening.startswith(text) and text != opening for opening in self.first)
            if waits and not final:
                return False
            self._buffer = self._buffer.lstrip("\n")
            self._quiet = False
            if self._opens_first(text):
                return True
        tags = (THINK_END, THINK) if self._state == "reasoning" else (THINK, THINK_END, *self.opens)
        places = [(self._buffer.find(tag), -len(tag), tag) for tag in tags if tag in self._buffer]
        if not places:
            held = 0 if final else _partial_tag(self._buffer, tags)
            size = len(self._buffer) - held
            ready, self._buffer = self._buffer[:size], self._buffer[size:]
            self._emit_text(events, ready)
            return False
        place, _, tag = min(places)
        before, self._buffer = self._buffer[:place], self._buffer[place:]
        self._emit_text(events, before)
        if tag in self.opens:
            self._state = "section"
            return True
        self._buffer = self._buffer[len(tag) :]
        if tag == THINK_END and self._state == "reasoning":
            self._state, self._quiet, self._breaks = "content", True, ""
            return True
        self._malformed.append(
            f"thinking: a second {tag}" if self._thought else f"thinking: {tag} after the answer began"
        )
        self._emit_text(events, tag)
        return True

    def _section(self, events: list[Event], final: bool) -> bool:
        """A section of calls at the beginning of the buffer."""
        size = self.form.end(self._buffer, final)
        if size is None:
            return False
        self._state = "content"
        if size == 0:
            self._emit_text(events, self._buffer[:1])
            self._buffer = self._buffer[1:]
            return True
        section, self._buffer = self._buffer[:size], self._buffer[size:]
        try:
            calls = self.form.read(section, self.schemas)
        except Malformed as error:
            self._malformed.append(f"tool call: {error}")
            calls = []
        if not calls:
            self._malformed += [f"thinking: a second {tag}" for tag in (THINK, THINK_END) if tag in section]
            self._emit_text(events, section)
            return True
        self._breaks = ""
        self._calls += calls
        events += [("tool_call", call) for call in calls]
        return True

    def _emit_text(self, events: list[Event], text: str) -> None:
        """Text of the current part, with line breaks at its end held back."""
        kind: Kind = "reasoning" if self._state == "reasoning" else "content"
        if kind == "reasoning" and not self._parts["reasoning"]:
            text = text.lstrip("\n")
        if kind == "content" and self._calls and not self._parts["content"]:
            text = text.lstrip("\n")
        shown = text.rstrip("\n")
        if not shown:
            self._breaks += text
            return
        self._emit(events, kind, self._breaks + shown)
        self._breaks = text[len(shown) :]

    def _emit(self, events: list[Event], kind: Kind, text: str) -> None:
        self._parts[kind].append(text)
        events.append((kind, text))


def parse_output(
    text: str, form: CallForm, schemas: Schemas | None = None, tools: bool = True, before: str = ""
) -> AssistantMessage:
    """A whole answer, without its stop token, taken apart."""
    parser = OutputParser(form, schemas, tools, before)
    parser.feed(text)
    parser.close()
    return parser.message


def recorded(message: Message) -> AssistantMessage:
    """What a recorded assistant message says: its fields, or, in its text, calls and reasoning of our own format."""
    said = parse_output(text_of(message.get("content"), "content"), OWN)
    reasoning = message.get("reasoning_content") or said.reasoning
    return replace(said, reasoning=reasoning, tool_calls=(*said.tool_calls, *calls_of(message)))


def _partial_tag(text: str, tags: Sequence[str]) -> int:
    """Length of the longest end of `text` that could be the beginning of one of `tags`."""
    longest = min(len(text), max(len(tag) for tag in tags) - 1)
    return next((size for size in range(longest, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)
