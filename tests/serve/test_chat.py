"""The terminal client against a real server."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loopline.base.errors import UserError
from loopline.serve.chat import chat
from tests.serve.scripted import ScriptedEngine, served
from tests.support_model import tiny_tokenizer


def talk(tmp_path, lines, reply, context=256):
    out = io.StringIO()
    prompts = []

    def answer(text, seed):
        prompts.append(text)
        return reply

    entered = iter(lines)

    def read():
        try:
            return next(entered)
        except StopIteration:
            raise EOFError from None

    engine = ScriptedEngine(tiny_tokenizer(tmp_path), answer)
    chat(served=served(engine, context), read=read, console=Console(file=out, width=80))
    return out.getvalue(), prompts


def test_turns_are_remembered_until_reset(tmp_path):
    out, prompts = talk(
        tmp_path, ["one", "", "two", "/reset", "three", "/quit", "four"], "<think>hm</think>[b]fine[/b]"
    )
    assert out.count("[b]fine[/b]") == 3 and "hm" in out
    assert "one" in prompts[1] and "fine" in prompts[1] and "hm" not in prompts[1]
    assert "one" not in prompts[2]
    assert len(prompts) == 3


def test_what_the_server_refuses_is_said(tmp_path):
    with pytest.raises(UserError, match="at most"):
        talk(tmp_path, ["x" * 400], "fine", context=100)


def test_no_server_and_no_model():
    with pytest.raises(UserError, match="No server answers"):
        chat(url="http://127.0.0.1:9", read=lambda: "hi")
    with pytest.raises(UserError, match="nobody to talk to"):
        chat()
