"""What a chat template can render, found by trying, and messages made ready for it.

    abilities = Abilities.of(template, form)
    messages, tools = abilities.prepare(messages, tools, form)

Templates differ in what they take: some drop `reasoning_content`, want arguments as text, refuse the roles system and
tool, or have no place for tools. What a template cannot render is written into the texts of the messages by the form of
the checkpoint's family: tools into the system turn (or the first question), calls into the assistant's text, results
into a user turn. What it can render is left to it. Not covered: proving a rendering (see `chat.check`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.forms.form import Call, CallForm, dumps
from loopline.chat.message import Message, calls_of, text_of
from loopline.chat.parser import parse_output
from loopline.chat.template import ChatTemplate
from loopline.chat.thinking import THINK, THINK_END, read_thinking, wrote_thinking

ASK = {"role": "user", "content": "quser"}
ANSWER = {"role": "assistant", "content": "qanswer"}
PROBE = Call("qtool", {"qkey": "qvalue"})
TOOL = {
    "type": "function",
    "function": {
        "name": "qtool",
        "description": "qdescription",
        "parameters": {
            "type": "object",
            "properties": {"qkey": {"type": "string", "description": "qkind"}},
            "required": ["qkey"],
        },
    },
}
ID_SIZE = 9
"""Length of the ids that Mistral's templates insist on."""


@dataclass(frozen=True)
class Abilities:
    """What one template can do by itself."""

    system: bool
    """Renders a system turn, whatever follows it."""
    tools: bool
    """Shows the schemas of tools."""
    calls: bool
    """Renders a tool call so that it reads back and is closed by a stop token."""
    words_with_calls: bool
    """Renders what the assistant says beside a call."""
    several_calls: bool
    """Renders several calls in one turn."""
    results: bool
    """Renders a turn of the role tool."""
    reasoning: bool
    """Renders `reasoning_content`, at least of the last turn."""
    inline_reasoning: bool
    """Keeps reasoning that is between its tags in the content, at least of the last turn."""
    switch: bool
    """Renders another prompt with `enable_thinking` false."""
    empty: str | None = ""
    """What the content of a turn that only calls must be."""
    arguments_text: bool = False
    """Wants arguments as JSON text, not as an object."""

    @classmethod
    def of(cls, template: ChatTemplate, form: CallForm) -> Abilities:
        """Try everything once."""

        def shows(messages: Sequence[Message], *words: str, **settings: Any) -> bool:
            text = template.attempt(messages, **settings)
            return text is not None and all(word in text for word in words)

        ways = [(empty, as_text) for as_text in (False, True) for empty in ("", None)]
        way = next((way for way in ways if _reads_back(template, form, [PROBE], *way)), None)
        empty, as_text = way or ("", False)
        asked = [ASK, _turn([PROBE], empty, as_text)] if way else [ASK, ANSWER]
        system = {"role": "system", "content": "qsystem"}
        result = {"role": "tool", "name": "qtool", "tool_call_id": _id(0, 0), "content": "qresult"}
        other = Call("qother", {"qkey": "qvalue"})
        thought = {"role": "assistant", "content": "qanswer", "reasoning_content": "qthought"}
        inline = {"role": "assistant", "content": _with_reasoning("qthought", "qanswer")}
        prompts = [template.attempt([ASK], True, enable_thinking=value) for value in (True, False)]
        return cls(
            # One template shows the system turn only while the question is the last turn.
            system=all(shows([system, ASK, *more], "qsystem", "quser") for more in ([], [ANSWER])),
            tools=shows([ASK], "qtool", "qkind", tools=[TOOL]),
            calls=way is not None,
            words_with_calls=way is not None and shows([ASK, _turn([PROBE], "qwords", as_text)], "qwords", "qtool"),
            several_calls=way is not None and _reads_back(template, form, [PROBE, other], empty, as_text),
            results=shows([*asked, result], "qresult"),
            reasoning=shows([ASK, thought], "qthought", "qanswer"),
            inline_reasoning=shows([ASK, inline], "qthought", "qanswer"),
            switch=None not in prompts and prompts[0] != prompts[1],
            empty=empty,
            arguments_text=as_text,
        )

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, form: CallForm
    ) -> tuple[list[Message], Sequence[Mapping[str, Any]] | None]:
        """Messages and tools as the template takes them. Messages that it takes as they are stay untouched."""
        ready = [self._ready(message, number, form) for number, message in enumerate(messages)]
        ready = _with_ids(ready)
        if not self.results:
            ready = _results_as_user(ready)
        if tools and not self.tools:
            ready, tools = self._offer(ready, form.instructions(tools)), None
        elif tools:
            tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        if not self.system and ready and ready[0].get("role") == "system" and len(ready) > 1:
            words, first = ready[0].get("content"), ready[1]
            if isinstance(words, str) and isinstance(first.get("content"), str) and first["role"] == "user":
                ready = [{**first, "content": f"{words}\n\n{first['content']}"}, *ready[2:]]
        return ready, tools

    def _ready(self, message: Message, number: int, form: CallForm) -> Message:
        if message.get("role") != "assistant":
            return message
        calls = calls_of(message, f"message {number}") if message.get("tool_calls") else []
        changed = {key: value for key, value in message.items() if key != "tool_calls"}
        reasoning = message.get("reasoning_content")
        if reasoning and not self.reasoning:
            del changed["reasoning_content"]
            changed["content"] = _with_reasoning(str(reasoning), text_of(changed.get("content"), "content"))
        elif not reasoning and self.reasoning and not self.inline_reasoning and isinstance(changed.get("content"), str):
            found = read_thinking(changed["content"])
            if found.reasoning and found.answer is not None:
                changed |= {"reasoning_content": found.reasoning.strip("\n"), "content": found.answer.lstrip("\n")}
        if not calls:
            return changed
        words = text_of(changed.get("content"), "content")
        if self.calls and (self.several_calls or len(calls) == 1) and (self.words_with_calls or not words.strip()):
            entries = message["tool_calls"]
            changed["tool_calls"] = [self._entry(call, entry) for call, entry in zip(calls, entries, strict=True)]
            changed["content"] = changed["content"] if words.strip() else self.empty
        else:
            changed["content"] = form.write_after(words.rstrip("\n"), calls)
        return changed

    def _entry(self, call: Call, entry: Mapping[str, Any]) -> dict[str, Any]:
        arguments = dumps(call.arguments) if self.arguments_text else call.arguments
        kept = {"id": entry["id"]} if entry.get("id") else {}
        return {**kept, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    @staticmethod
    def _offer(messages: list[Message], text: str) -> list[Message]:
        """The messages with `text` at the end of the system turn, which is made where there is none."""
        if messages and messages[0].get("role") == "system" and isinstance(messages[0].get("content"), str):
            first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
            return [first, *messages[1:]]
        return [{"role": "system", "content": text}, *messages]


def _with_reasoning(reasoning: str, content: str) -> str:
    return f"{THINK}\n{reasoning.strip()}\n{THINK_END}\n\n{content}"


def _turn(calls: Sequence[Call], content: str | None, as_text: bool) -> dict[str, Any]:
    entries = [
        {
            "id": _id(0, number),
            "type": "function",
            "function": {"name": call.name, "arguments": dumps(call.arguments) if as_text else call.arguments},
        }
        for number, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": entries}


def _reads_back(
    template: ChatTemplate, form: CallForm, calls: Sequence[Call], content: str | None, as_text: bool
) -> bool:
    """Whether the rendering of a turn with calls has an end and is read as those calls."""
    try:
        text, spans = template.spans([ASK, _turn(calls, content, as_text)])
    except UserError:
        return False
    if len(spans) != 1:
        return False
    written = template.without_stop(text[slice(*spans[0])])
    types = {call.name: {"properties": {"qkey": {"type": "string"}}} for call in calls}
    found = parse_output(written, form, types, before=wrote_thinking(text[: spans[0][0]]))
    return found.tool_calls == tuple(calls) and not found.malformed


def _id(message: int, number: int) -> str:
    """The id of a call by its place: nine letters and digits, which every template takes."""
    return hashlib.sha256(f"{message}/{number}".encode()).hexdigest()[:ID_SIZE]


def _with_ids(messages: list[Message]) -> list[Message]:
    """Every call with an id of nine letters and digits, and every result with that of its call."""
    if not any(message.get("tool_calls") or message.get("role") == "tool" for message in messages):
        return messages
    ready: list[Message] = []
    names: dict[str, str] = {}
    open_ids: list[tuple[str, str]] = []
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            entries, open_ids = [], []
            for number, entry in enumerate(message["tool_calls"]):
                given = str(entry.get("id", ""))
                short = given if len(given) == ID_SIZE and given.isalnum() else _id(place, number)
                names[given] = short
                open_ids.append((short, str(entry["function"]["name"])))
                entries.append({**entry, "id": short})
            message = {**message, "tool_calls": entries}
        elif message.get("role") == "tool":
            given = str(message.get("tool_call_id", ""))
            known = next((item for item in open_ids if item[0] == names.get(given)), None)
            short, name = known or (open_ids[0] if open_ids else (_id(place, 0), ""))
            open_ids = [item for item in open_ids if item[0] != short]
            message = {**({"name": name} if name else {}), **message, "tool_call_id": short}
        ready.append(message)
    return ready


def _results_as_user(messages: list[Message]) -> list[Message]:
    """Turns of the role tool as user turns, neighbours in one, since such templates want roles in turn."""
    ready: list[Message] = []
    for message in messages:
        if message.get("role") != "tool":
            ready.append(message)
            continue
        text = f"<tool_response>\n{message.get('content')}\n</tool_response>"
        last = ready[-1] if ready else None
        if last is not None and last.get("role") == "user" and "told" in last:
            ready[-1] = {**last, "content": f"{last['content']}\n{text}"}
        else:
            ready.append({"role": "user", "content": text, "told": True})
    return [{key: value for key, value in message.items() if key != "told"} for message in ready]
