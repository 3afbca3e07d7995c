"""Whether a checkpoint's chat works: rendering, masks, parsing, stop tokens, tools, each tried and reported.

    report = chat_check(Path("../Qwen3-0.6B"))         # the command: loopline chat-check MODEL [--json]
    report.passed, [probe for probe in report.probes if probe.outcome == "fail"]

A probe passes, fails, or says what the template makes impossible ("cannot") and what is done instead. Ids are compared
with `transformers` where that is installed. Needs the tokenizer's files only, no weights. Not covered: what the model
makes of its prompts.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jinja2

from loopline.base.errors import UserError
from loopline.chat.continuation import Rewritten
from loopline.chat.forms.form import Call
from loopline.chat.load import load_tokenizer
from loopline.chat.message import AssistantMessage, Message
from loopline.chat.stock_tokenizer import StockTokenizer
from loopline.chat.thinking import wrote_thinking
from loopline.chat.tokenizer import Tokenizer, Tools

Outcome = Literal["pass", "fail", "cannot"]
TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": "find_lamp",
            "description": "Find a lamp by its colour.",
            "parameters": {
                "type": "object",
                "properties": {
                    "colour": {"type": "string", "description": "Its colour."},
                    "most": {"type": "integer", "description": "How many at most."},
                },
                "required": ["colour"],
            },
        },
    }
]
ASK, AGAIN = {"role": "user", "content": "6 x 7?"}, {"role": "user", "content": "And a blue lamp?"}
SYSTEM, RESULT = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": "a lamp of 7 coins"}
CALL, OTHER = Call("find_lamp", {"colour": "blue", "most": 3}), Call("find_lamp", {"colour": 'a "red" one\nor two'})
SAID = {
    "words": AssistantMessage("It is 42."),
    "reasoning": AssistantMessage("It is 42.", "6 x 7 = 42\nso 42"),
    "a call": AssistantMessage(tool_calls=(CALL,)),
    "words and a call": AssistantMessage("One moment.", tool_calls=(OTHER,)),
    "two calls": AssistantMessage(tool_calls=(CALL, OTHER)),
    "reasoning and a call": AssistantMessage("", "a blue one", (CALL,)),
}


@dataclass(frozen=True)
class Probe:
    """One thing that was tried."""

    name: str
    outcome: Outcome
    detail: str = ""
    """Why it failed, or what the template cannot do and what is done instead."""


@dataclass(frozen=True)
class ChatReport:
    """What a checkpoint's chat can do."""

    tokenizer: str
    form: str
    """The form of its tool calls."""
    stop_tokens: list[str]
    probes: list[Probe] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(probe.outcome != "fail" for probe in self.probes)

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON value."""
        return {"passed": self.passed, **asdict(self)}

    def lines(self) -> list[str]:
        """The report as text, a probe a line."""
        words = {"pass": "pass", "fail": "FAIL", "cannot": "the template cannot"}
        head = f"{self.tokenizer}: tool calls in the {self.form} form; turns end with {' or '.join(self.stop_tokens)}"
        shown = [f"  {p.name}: {words[p.outcome]}{': ' if p.detail else ''}{p.detail}" for p in self.probes]
        return [head, *shown, "passed" if self.passed else "NOT passed"]


def chat_check(path: Path) -> ChatReport:
    """Try everything on the tokenizer and template in the directory `path`.

    Raises `UserError` when there is no tokenizer, or it has no chat template.
    """
    tokenizer = load_tokenizer(path)
    if isinstance(tokenizer, StockTokenizer):
        # `transformers` gives templates the day of the clock.
        tokenizer = StockTokenizer.load(path, datetime.date.today())
    tokenizer.render([ASK], add_generation_prompt=True)
    probes: list[Probe] = []
    for name, probe in (
        ("what it lacks", _lacks),
        ("renders as transformers", _transformers(path)),
        ("mask and stop tokens", _masks),
        ("parse(render(x)) = x", _parses),
        ("tools are shown", _tools),
        ("goes on after a tool result", lambda t: _goes_on(t, "a call", [RESULT])),
        ("goes on after a question", lambda t: _goes_on(t, "words", [AGAIN])),
        ("goes on after reasoning", lambda t: _goes_on(t, "reasoning", [AGAIN])),
        ("thinking can be switched off", _switch),
    ):
        try:
            probes += [replace(found, name=f"{name}{found.name}") for found in probe(tokenizer)]
        except UserError as error:
            probes.append(Probe(name, "fail", error.what))
    return ChatReport(type(tokenizer).__name__, tokenizer.form.name, _stops(tokenizer), probes)


def _conversations(tokenizer: Tokenizer) -> Iterator[tuple[str, list[Message], Tools | None]]:
    """Conversations by name, with the tools that they offer; each ends with an answer."""
    yield "one turn", [ASK, SAID["words"].to_openai()], None
    yield "a system turn", [SYSTEM, ASK, SAID["words"].to_openai()], None
    yield "two turns", [ASK, SAID["words"].to_openai(), AGAIN, {"role": "assistant", "content": "None."}], None
    for name in ("reasoning", "a call", "words and a call", "two calls"):
        said = SAID[name]
        yield name, [ASK, said.to_openai()], TOOLS if said.tool_calls else None
    answered: list[Message] = [AGAIN, SAID["a call"].to_openai(), RESULT, {"role": "assistant", "content": "7 coins."}]
    yield "a tool result", answered, TOOLS


def _lacks(tokenizer: Tokenizer) -> list[Probe]:
    if not isinstance(tokenizer, StockTokenizer):
        return []
    able = tokenizer.abilities
    instead = {
        "system": ("render a system turn", "its text is put before the first question"),
        "tools": ("show tools", "their schemas are put into the system turn"),
        "calls": ("render a tool call that reads back and ends", "it is written into the assistant's text"),
        "words_with_calls": ("render words beside a tool call", "the call is written into the text"),
        "several_calls": ("render several tool calls", "they are written into the assistant's text"),
        "results": ("render a turn of the role tool", "results are given in a user turn"),
        "reasoning": ("take reasoning_content", "reasoning is written into the text between its marks"),
    }
    # What follows from having no calls at all is not said again.
    shown = [name for name in instead if able.calls or name not in ("words_with_calls", "several_calls")]
    found = [
        Probe(f": {name}", "cannot", f"{instead[name][0]}; {instead[name][1]}")
        for name in shown
        if not getattr(able, name)
    ]
    if not able.reasoning and not able.inline_reasoning:
        found.append(Probe(": reasoning kept", "cannot", "keep reasoning; training on it is refused"))
    return found


def _transformers(path: Path) -> Callable[[Tokenizer], list[Probe]]:
    def probe(tokenizer: Tokenizer) -> list[Probe]:
        if importlib.util.find_spec("transformers") is None:
            return [Probe("", "cannot", "be compared: transformers is not installed")]
        import transformers

        theirs = transformers.AutoTokenizer.from_pretrained(str(path))
        cut, refused = list[str](), list[str]()
        for name, messages, tools in _conversations(tokenizer):
            for some, prompt in ((messages, False), (messages[:-1], True)):
                shown, offered = tokenizer.as_shown(some, tools)
                ours = tokenizer.render(some, add_generation_prompt=prompt, tools=tools)
                listed: Any = None if offered is None else [dict(tool) for tool in offered]
                turns = [dict(message) for message in shown]
                try:
                    text = theirs.apply_chat_template(turns, listed, add_generation_prompt=prompt, tokenize=False)
                except jinja2.TemplateError as error:
                    # It leaves out a content that is null, which some templates ask for.
                    refused.append(f"{name} ({error})")
                    continue
                expected = theirs(text, add_special_tokens=False)["input_ids"]
                if ours != expected:
                    if tokenizer.decode(ours) != tokenizer.decode(expected):
                        return [Probe("", "fail", f"{name}: other text than {text!r:.300}")]
                    cut.append(name)
        detail = f"same text; tokens are cut at the turns' borders in: {', '.join(dict.fromkeys(cut))}" if cut else ""
        found = [Probe("", "pass", detail)]
        if refused:
            found.append(Probe(": all", "cannot", f"be rendered by transformers: {'; '.join(dict.fromkeys(refused))}"))
        return found

    return probe


def _turns(tokenizer: Tokenizer, ids: Sequence[int], mask: Sequence[bool]) -> list[list[int]]:
    """The masked ids of each turn: runs, divided after stop tokens."""
    turns: list[list[int]] = []
    ended = True
    for token, wrote in zip(ids, mask, strict=True):
        if wrote and ended:
            turns.append([])
        if wrote:
            turns[-1].append(token)
        ended = not wrote or token in tokenizer.stop_ids
    return turns


def _masks(tokenizer: Tokenizer) -> list[Probe]:
    for name, messages, tools in _conversations(tokenizer):
        ids, mask = tokenizer.render_with_mask(messages, tools=tools, allow=("reasoning",))
        said = [message for message in messages if message["role"] == "assistant"]
        turns = _turns(tokenizer, ids, mask)
        if len(turns) != len(said):
            return [Probe("", "fail", f"{name}: {len(turns)} turns are masked of {len(said)}")]
        for turn, message in zip(turns, said, strict=True):
            if turn[-1] not in tokenizer.stop_ids or any(token in tokenizer.stop_ids for token in turn[:-1]):
                return [Probe("", "fail", f"{name}: a turn does not end with its first stop token")]
            words = str(message["content"] or "")
            if words not in tokenizer.decode(turn):
                return [Probe("", "fail", f"{name}: the mask does not hold {words!r}")]
    return [Probe("", "pass")]


def _parses(tokenizer: Tokenizer) -> list[Probe]:
    found = []
    for name, said in SAID.items():
        tools = TOOLS if said.tool_calls else None
        try:
            ids, mask = tokenizer.render_with_mask([ASK, said.to_openai()], tools=tools)
            written = [token for token, wrote in zip(ids, mask, strict=True) if wrote]
            read = tokenizer.parse(written, tools, ids[: mask.index(True)])
        except UserError as error:
            found.append(Probe(f": {name}", "cannot" if "drops or changes" in error.what else "fail", error.what))
            continue
        if not same(read, said):
            found.append(Probe(f": {name}", "fail", f"{tokenizer.decode(written)!r:.200} is read as {read}"))
        else:
            found.append(Probe(f": {name}", "pass"))
    return found


def _tools(tokenizer: Tokenizer) -> list[Probe]:
    text = tokenizer.decode(tokenizer.render([ASK], add_generation_prompt=True, tools=TOOLS))
    missing = [word for word in ("find_lamp", "Find a lamp by its colour.", "most") if word not in text]
    return [Probe("", "fail" if missing else "pass", f"{missing[0]} is not shown" if missing else "")]


def _goes_on(tokenizer: Tokenizer, kind: str, new: Sequence[Message]) -> list[Probe]:
    """A sampled answer of a kind, continued: the ids must be those of the whole conversation."""
    said = SAID[kind]
    tools = TOOLS if said.tool_calls else None
    found = tokenizer.continuation([ASK, said.to_openai()], new, tools=tools)
    if isinstance(found, Rewritten):
        return [Probe("", "cannot", f"go on where it stands: {found.reason}; a new branch is begun")]
    asked = tokenizer.render([ASK], add_generation_prompt=True, tools=tools)
    conversation = tokenizer.render([ASK, said.to_openai(), *new], add_generation_prompt=True, tools=tools)
    prompt, whole, more = (tokenizer.decode(ids) for ids in (asked, conversation, found.ids))
    written = whole.removeprefix(prompt).removesuffix(more)
    written = next((written.removesuffix(stop) for stop in _stops(tokenizer) if written.endswith(stop)), "")
    if (
        prompt + written not in whole
        or not more
        or not same(tokenizer.parse(wrote_thinking(prompt) + written, tools), said)
    ):
        return [Probe("", "fail", f"{more!r:.200} does not continue the conversation {whole!r:.400}")]
    return [Probe("", "pass")]


def same(read: AssistantMessage, said: AssistantMessage) -> bool:
    """Whether two answers are the same but for white space at the ends of their words, which templates set."""
    return replace(read, content=read.content.strip()) == replace(said, content=said.content.strip())


def _stops(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.stop_ids]


def _switch(tokenizer: Tokenizer) -> list[Probe]:
    on, off = (tokenizer.render([ASK], add_generation_prompt=True, enable_thinking=value) for value in (True, False))
    if on == off:
        return [Probe("", "cannot", "switch thinking off")]
    return [Probe("", "pass")]
