"""A terminal client: talk to a checkpoint directly or to a running server.

    chat(model=Path("release"))          # loads the model in this process
    chat(url="http://127.0.0.1:8000")    # talks to `loopline serve`

Reasoning is shown dimmed. `/reset` starts over, `/quit` (or end of input) leaves. Not covered: running tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from loopline.base.errors import UserError
from loopline.serve.config import ServeConfig
from loopline.serve.model import ServedModel
from loopline.serve.server import BackgroundServer


def chat(
    model: Path | None = None,
    url: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    read: Callable[[], str] | None = None,
    console: Console | None = None,
    served: ServedModel | None = None,
) -> None:
    """Talk until the user leaves. Give `model` or `url`; `read` and `console` stand in for the terminal in tests.

    Raises `UserError` when the server cannot be reached or refuses.
    """
    console = console or Console()
    read = read or (lambda: console.input("[bold]you[/bold] "))
    with ExitStack() as stack:
        if url is None:
            if model is None and served is None:
                raise UserError("There is nobody to talk to", "give a model directory or the address of a server")
            loaded = served or ServedModel.load(model or Path())
            url = stack.enter_context(BackgroundServer(loaded, ServeConfig(), None)).url
        client = stack.enter_context(httpx.Client(base_url=url, timeout=600))
        settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        settings = {key: value for key, value in settings.items() if value is not None}
        messages: list[dict[str, str]] = []
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if line == "/quit":
                return
            if line == "/reset":
                messages = []
                continue
            if not line:
                continue
            messages.append({"role": "user", "content": line})
            answer = _answer(client, {"model": "loopline", "messages": messages, "stream": True, **settings}, console)
            messages.append({"role": "assistant", "content": answer})


def _answer(client: httpx.Client, body: dict[str, Any], console: Console) -> str:
    """Print one answer as it arrives and return its content."""
    content, thinking = "", False
    for delta in _deltas(client, body):
        if text := delta.get("reasoning_content"):
            thinking = True
            console.print(text, end="", style="dim", markup=False, highlight=False)
        if text := delta.get("content"):
            if thinking:
                console.print()
                thinking = False
            content += text
            console.print(text, end="", markup=False, highlight=False)
    console.print()
    return content


def _deltas(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise UserError(
                    f"The server refused: {response.json()['error']['message']}", "/reset, or ask something shorter"
                )
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise UserError(f"The answer failed: {event['error']['message']}", "look at the server's log")
                for choice in event["choices"]:
                    yield choice["delta"]
    except httpx.TransportError as error:
        raise UserError(
            f"No server answers at {client.base_url} ({error})", "start `loopline serve`, or check its address"
        ) from error
