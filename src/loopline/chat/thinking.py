"""The thinking part of an answer: the one rule that graders, the engine's budget and the parser of answers share.

    read_thinking("<think>6*7=42</think>42")           # Thinking(reasoning="6*7=42", answer="42")
    read_thinking("<think></think>8</think>7")         # answer=None, problem="a second </think>"

An answer thinks at its beginning, once: an optional opening tag with nothing but white space before it, the reasoning,
one closing tag, the answer. Any further tag makes the answer malformed, and a malformed answer has no answer part:
otherwise a policy hides reasoning from its budget, or its answer from a grader, by opening and closing again. What a
prompt wrote of the thinking part belongs to the text that is read (see `answer_text`). Not covered: what brevity is
worth (see `grading.reward`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer

THINK, THINK_END = "<think>", "</think>"
SPELLED = re.compile(r"<(?=/?think>)")
TAIL = 12
"""Ids at the end of a prompt that are looked at for what it wrote of the thinking part."""


@dataclass(frozen=True)
class Thinking:
    """An answer divided."""

    reasoning: str | None
    """None when the text has no thinking part, or when it is malformed."""
    answer: str | None
    """None when thinking never ends, or when the text is malformed."""
    problem: str | None = None
    """What is malformed about it."""

    @property
    def unclosed(self) -> bool:
        """Whether thinking was opened and never closed."""
        return self.answer is None and self.problem is None


def read_thinking(text: str) -> Thinking:
    """Divide a text into reasoning and answer, byte for byte except for the tags."""
    if THINK not in text and THINK_END not in text:
        return Thinking(None, text)
    start = text.lstrip()
    if not start.startswith(THINK):
        first = min((text.find(mark), mark) for mark in (THINK, THINK_END) if mark in text)[1]
        return Thinking(None, None, f"{first} after the answer began")
    reasoning, closed, answer = start[len(THINK) :].partition(THINK_END)
    for part in (reasoning, answer):
        for mark in (THINK, THINK_END):
            if mark in part:
                return Thinking(None, None, f"a second {mark}")
    return Thinking(reasoning, answer if closed else None)


class Coder(Protocol):
    """A tokenizer, as far as thinking goes."""

    fast: FastTokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def mark_ids(tokenizer: Coder) -> tuple[int, int] | None:
    """Ids of the opening and the closing tag; None where the vocabulary lacks one of them."""
    begin, end = (tokenizer.fast.token_to_id(mark) for mark in (THINK, THINK_END))
    return None if begin is None or end is None else (begin, end)


def prompt_thinking(tokenizer: Coder, prompt: Sequence[int]) -> str:
    """What the end of a prompt wrote of the answer's thinking part: an opening tag, a closed part, or nothing."""
    return wrote_thinking(tokenizer.decode(prompt[-TAIL:]))


def wrote_thinking(text: str) -> str:
    """The same of a prompt's text."""
    tail = text.rstrip()
    if tail.endswith(THINK):
        return THINK
    return THINK + THINK_END if tail.endswith(THINK_END) else ""


def answer_text(tokenizer: Coder, prompt: Sequence[int], ids: Sequence[int], stop_text: str | None = None) -> str:
    """The text of a sampled answer, up to its stop token or text, and with what `prompt` wrote of its thinking part.

    Tags that the policy spelled in ordinary tokens, which no budget can see, are broken up (`< think>`), so that they
    divide nothing.
    """
    if ids and ids[-1] in tokenizer.stop_ids:
        ids = ids[:-1]
    text = tokenizer.decode(ids)
    marks = mark_ids(tokenizer)
    if marks is not None and sum(map(text.count, (THINK, THINK_END))) != sum(token in marks for token in ids):
        text = _without_spelled(tokenizer, ids, marks)
    if stop_text is not None:
        text = text.partition(stop_text)[0]
    return with_prompt(prompt_thinking(tokenizer, prompt), text)


def with_prompt(wrote: str, text: str) -> str:
    """An answer's text after what its prompt `wrote` of the thinking part.

    Thinking that the prompt opened is opened in the text. One that it closed is in the text only when the answer
    has tags of its own, which are second ones then.
    """
    return wrote + text if wrote == THINK or THINK in text or THINK_END in text else text


def _without_spelled(tokenizer: Coder, ids: Sequence[int], marks: tuple[int, int]) -> str:
    pieces: list[str] = []
    run: list[int] = []
    for token in [*ids, None]:
        if token is None or token in marks:
            pieces.append(SPELLED.sub("< ", tokenizer.decode(run)))
            run = []
        else:
            run.append(token)
        if token in marks:
            pieces.append(THINK if token == marks[0] else THINK_END)
    return "".join(pieces)
