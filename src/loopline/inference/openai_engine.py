"""Any server of OpenAI's API as an engine: chat completions and completions, with log-probs, many at once.

    engine = OpenAIEngine("http://localhost:8000/v1", "loopline", tokenizer)
    replies = engine.chat([[{"role": "user", "content": "12+5=?"}]], Sampling(n=4))
    groups = engine.generate([prompt_ids], Sampling(n=4))             # the interface of every engine

`generate` sends prompts as token ids to `/completions`, or, with `mode="chat"`, as the conversation they render. A
server answers with text; the ids are found by what each returned token spells, or taken from the server where it sends
them (`return_token_ids`, an extension of vLLM's). Busy servers, failures of theirs and timeouts are tried again, later
and later. Not covered: tools, images, forced thinking budgets.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import httpx

from loopline.base.errors import UserError
from loopline.chat.thinking import THINK, THINK_END
from loopline.chat.tokenizer import ROLE_IDS, Tokenizer
from loopline.inference.completion import Completion, Finished
from loopline.inference.sampling import Sampling

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""


@dataclass(frozen=True)
class Reply:
    """One answer of a server."""

    text: str
    """What it wrote, reasoning in <think> tags before the answer."""
    finish: Literal["stop", "length"]
    tokens: list[str]
    """Texts of its tokens; empty when the server sent no log-probs."""
    logprobs: list[float]
    token_ids: list[int] | None = None
    """The tokens' ids, where the server sends them."""

    def completion(self, number: int, version: int) -> Completion:
        """The reply without its text; ids are empty where the server sends none."""
        return Completion(list(self.token_ids or []), self.logprobs, self.finish, version, number=number)


class OpenAIEngine:
    """A model behind an HTTP server."""

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Tokenizer | None = None,
        *,
        api_key: str | None = None,
        mode: Literal["completions", "chat"] = "completions",
        concurrency: int = 16,
        timeout: float = 120.0,
        attempts: int = 6,
        first_wait: float = 0.5,
        ask_token_ids: bool = False,
        ask_logprobs: bool = True,
        version: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`url` ends where `/chat/completions` would follow; `attempts` counts the first; times in seconds."""
        self.url, self.model, self.mode, self.version = url.rstrip("/"), model, mode, version
        self._tokenizer, self.concurrency, self.attempts = tokenizer, concurrency, attempts
        self.first_wait, self.timeout, self.transport = first_wait, timeout, transport
        self.ask_token_ids, self.ask_logprobs = ask_token_ids, ask_logprobs
        self.headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the served model. Raises `UserError` when there is none."""
        if self._tokenizer is None:
            raise UserError(f"{self.url}: token ids need the served model's tokenizer", "pass it to OpenAIEngine")
        return self._tokenizer

    @property
    def renders(self) -> bool:
        """Whether the server must render conversations, since there is no tokenizer here."""
        return self._tokenizer is None

    def fingerprint(self) -> str:
        """What samples, as far as one can say from here."""
        return f"{self.model} at {self.url}, version {self.version}"

    def chat(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        replied: Callable[[int, list[Reply]], None] | None = None,
    ) -> list[list[Reply]]:
        """`sampling.n` replies to each conversation, in order. Needs no tokenizer.

        `replied` is called with the number of a conversation and its replies as soon as they arrive.
        """
        bodies = [
            self._chat_body(messages, sampling, seed)
            for messages, seed in zip(conversations, _seeds(conversations, sampling, seeds), strict=True)
        ]
        return _wait_for(self._ask_all("/chat/completions", bodies, replied))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt. Raises `UserError` for what the server refuses or cannot do."""
        self.tokenizer  # noqa: B018  # Missed before anything is asked for.
        bodies = [
            self._body(prompt, sampling, seed)
            for prompt, seed in zip(prompts, _seeds(prompts, sampling, seeds), strict=True)
        ]
        done: list[list[Completion]] = [[] for _ in bodies]

        def replied(prompt: int, group: list[Reply]) -> None:
            done[prompt] = [self._completion(reply, number) for number, reply in enumerate(group)]
            if finished is not None:
                for completion in done[prompt]:
                    finished(prompt, completion)

        _wait_for(self._ask_all(self._path, bodies, replied))
        return done

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        """Ids and log-probs of one completion, as they arrive."""
        body = {**self._body(prompt, sampling, sampling.seed), "n": 1, "stream": True}
        loop = asyncio.new_event_loop()
        pieces = self._stream(self._path, body)
        try:
            while True:
                try:
                    token, logprob = loop.run_until_complete(anext(pieces))
                except StopAsyncIteration:
                    return
                yield self._id_of(token), logprob
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    @property
    def _path(self) -> str:
        return "/chat/completions" if self.mode == "chat" else "/completions"

    def _settings(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """What both kinds of requests say."""
        if sampling.thinking_budget is not None or sampling.keep_sets:
            raise UserError(
                "A server of OpenAI's API has neither thinking budgets nor kept sets",
                "leave out thinking_budget and keep_sets, or use the built-in engine",
            )
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": sampling.n,
            "seed": seed % 2**63,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.ask_token_ids:
            body["return_token_ids"] = True
        return body

    def _chat_body(self, messages: Messages, sampling: Sampling, seed: int) -> dict[str, Any]:
        asked = {"logprobs": True} if self.ask_logprobs else {}
        return {**self._settings(sampling, seed), "messages": [dict(m) for m in messages], **asked}

    def _body(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        if self.mode == "chat":
            return self._chat_body(messages_of(self.tokenizer, prompt), sampling, seed)
        return {**self._settings(sampling, seed), "prompt": list(prompt), "logprobs": 1}

    def _completion(self, reply: Reply, number: int) -> Completion:
        """A reply with token ids; `logprobs` is empty where the ids had to be found by encoding the text."""
        ids, logprobs = reply.token_ids, reply.logprobs
        if ids is None and reply.tokens and all(token in self._ids for token in reply.tokens):
            ids = [self._ids[token] for token in reply.tokens]
        if ids is None or len(ids) != len(logprobs):
            # Another division of the text into tokens, even one of as many, has other log-probs.
            ids, logprobs = self.tokenizer.encode(reply.text) if ids is None else ids, []
        return Completion(list(ids), logprobs, reply.finish, self.version, number=number)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """Id of every token by what it spells, of those that spell something nobody else does."""
        texts = [self.tokenizer.decode([number]) for number in range(self.tokenizer.vocab_size)]
        counts: dict[str, int] = {}
        for text in texts:
            counts[text] = counts.get(text, 0) + 1
        return {text: number for number, text in enumerate(texts) if counts[text] == 1}

    def _id_of(self, token: str) -> int:
        if token not in self._ids:
            raise UserError(
                f"{self.url}: the server's token {token!r} is no single token of this tokenizer",
                "give the tokenizer of the served model, or use generate instead of stream",
            )
        return self._ids[token]

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self.transport, timeout=self.timeout, headers=self.headers)

    async def _ask_all(
        self, path: str, bodies: Sequence[dict[str, Any]], replied: Callable[[int, list[Reply]], None] | None = None
    ) -> list[list[Reply]]:
        gate = asyncio.Semaphore(self.concurrency)

        async def one(client: httpx.AsyncClient, number: int, body: dict[str, Any]) -> list[Reply]:
            async with gate:
                response = await self._post(client, path, body)
            replies = self._read(response, body["n"])
            if replied is not None:
                replied(number, replies)
            return replies

        async with self._client() as client:
            tasks = [asyncio.create_task(one(client, number, body)) for number, body in enumerate(bodies)]
            try:
                return await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    async def _post(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
        """The reply to one request, after as many attempts as it takes and is allowed."""
        failure = ""
        for attempt in range(self.attempts):
            wait = min(LONGEST_WAIT, self.first_wait * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                response = await client.post(self.url + path, json=body)
            except httpx.TimeoutException:
                failure = f"no answer within {self.timeout:g} s"
            except httpx.TransportError as error:
                failure = f"no connection ({type(error).__name__}: {error})"
            else:
                if response.status_code not in AGAIN:
                    self._check(response, path)
                    return response
                failure = f"status {response.status_code}: {_message(response)}"
                wait = _asked_wait(response) or wait
            if attempt + 1 < self.attempts:
                await asyncio.sleep(min(wait, LONGEST_WAIT))
        raise UserError(
            f"{self.url}{path} gave no answer in {self.attempts} attempts; the last: {failure}",
            "check that the server runs and is not overloaded, lower concurrency, or raise timeout or attempts",
        )

    def _check(self, response: httpx.Response, path: str) -> None:
        """Raise what a refusal means."""
        status = response.status_code
        if status < 400:
            return
        fixes = {
            401: "give the server's key as api_key",
            403: "give a key that may use this model as api_key",
            404: f"check the URL (it must end before {path}) and the model's name {self.model!r}",
        }
        fix = fixes.get(status, "change the request as the server says")
        raise UserError(f"{self.url}{path} refused the request with status {status}: {_message(response)}", fix)

    def _read(self, response: httpx.Response, count: int) -> list[Reply]:
        try:
            choices = sorted(response.json()["choices"], key=lambda choice: choice.get("index", 0))
            replies = [_reply(choice) for choice in choices]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.url}: the reply is not one of OpenAI's API ({type(error).__name__}: {error}): "
                f"{response.text[:200]}",
                "check the URL",
            ) from error
        if len(replies) != count:
            raise UserError(
                f"{self.url}: {len(replies)} choices came back instead of {count}", "lower n to what the server allows"
            )
        return replies

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[tuple[str, float], None]:
        """Texts and log-probs of tokens from server-sent events."""
        async with self._client() as client, client.stream("POST", self.url + path, json=body) as response:
            if response.status_code >= 400:
                await response.aread()
                self._check(response, path)
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise UserError(f"{self.url}{path} failed while it wrote: {event['error']}", "try again")
                for choice in event["choices"]:
                    for pair in zip(*_token_logprobs(choice), strict=True):
                        yield pair


def messages_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[dict[str, str]]:
    """The conversation that `tokenizer.render(..., add_generation_prompt=True)` made `prompt` of.

    Raises `UserError` for a prompt that no conversation renders.
    """
    roles = {number: role for role, number in ROLE_IDS.items()}
    messages: list[dict[str, str]] = []
    part: list[int] = []
    for token in [*prompt, None]:
        if token is None or token in roles:
            if messages:
                messages[-1]["content"] = tokenizer.decode(part)
            if token is not None:
                messages.append({"role": roles[token], "content": ""})
            part = []
        elif token not in tokenizer.stop_ids:
            part.append(token)
    opened = messages.pop() if messages else None
    if opened != {"role": "assistant", "content": ""} or list(
        tokenizer.render(messages, add_generation_prompt=True)
    ) != list(prompt):
        raise UserError(
            "A prompt is no conversation up to where the assistant writes, so it cannot be sent as messages",
            'use mode="completions", or `chat` with the messages themselves',
        )
    return messages


def _seeds(prompts: Sequence[Any], sampling: Sampling, seeds: Sequence[int] | None) -> Sequence[int]:
    return [sampling.seed + number for number in range(len(prompts))] if seeds is None else seeds


def _reply(choice: Mapping[str, Any]) -> Reply:
    message = choice.get("message")
    if message is None:
        text = choice["text"]
    else:
        thought = message.get("reasoning_content") or message.get("reasoning")
        text = (f"{THINK}{thought}{THINK_END}" if thought else "") + (message.get("content") or "")
    tokens, logprobs = _token_logprobs(choice)
    finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    return Reply(text, finish, tokens, logprobs, choice.get("token_ids"))


def _token_logprobs(choice: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """Tokens and log-probs in the form of chat completions or of completions."""
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:
        entries = logprobs["content"] or []
        return [entry["token"] for entry in entries], [float(entry["logprob"]) for entry in entries]
    return list(logprobs.get("tokens") or []), [float(value) for value in logprobs.get("token_logprobs") or []]


def _message(response: httpx.Response) -> str:
    """What an error reply says."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, Mapping) else error)
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def _asked_wait(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _wait_for(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, from code that may itself run in an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
