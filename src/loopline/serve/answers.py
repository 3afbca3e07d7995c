"""From a checked request to finished answers: prompt, sampling, stop strings, and OpenAI's reply objects.

Messages, tools and answers go through the checkpoint's own chat template (package `chat`). Pure functions between
`serve.schema` and `serve.worker`; nothing here waits or records. Not covered: HTTP (see `serve.app`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.message import AssistantMessage, MessageError, as_turns
from loopline.chat.parser import OutputParser
from loopline.chat.thinking import prompt_thinking, with_prompt
from loopline.chat.tokenizer import Tokenizer
from loopline.inference.engine import Completion, Sampling
from loopline.serve.config import ServeConfig
from loopline.serve.model import ServedModel
from loopline.serve.schema import ApiError, ChatRequest


@dataclass(frozen=True)
class Plan:
    """A request made ready for the engine."""

    prompt: list[int]
    sampling: Sampling
    stops: tuple[str, ...]
    tools: tuple[Mapping[str, Any], ...] | None
    """Tools that calls in the answer are read for; None leaves calls as text."""

    def parser(self, tokenizer: Tokenizer) -> OutputParser:
        """The parser of an answer to this prompt."""
        return tokenizer.parser(self.prompt, self.tools, calls=self.tools is not None)


def plan_request(request: ChatRequest, served: ServedModel, config: ServeConfig, seed: int) -> Plan:
    """Prompt tokens and sampling. Raises `ApiError` (400) for messages or limits the model cannot take."""
    if request.n > config.max_choices:
        raise ApiError(400, f"n is {request.n}; this server gives at most {config.max_choices} choices", "n")
    tools = tuple(request.tools or ()) if request.use_tools else None
    try:
        turns = as_turns(request.messages)
        if turns[-1]["role"] == "assistant":
            raise ApiError(400, "the last message must come from the user or a tool", "messages")
        turns, shown = served.opening(turns, tools)
        prompt = served.engine.tokenizer.render(turns, add_generation_prompt=True, tools=shown)
    except MessageError as error:
        raise ApiError(400, error.what, error.param) from error
    except UserError as error:
        raise ApiError(400, str(error), "messages") from error
    room = served.context - len(prompt)
    if room < 1:
        raise ApiError(
            400,
            f"the messages take {len(prompt)} tokens and this model reads at most {served.context - 1}; shorten them",
            "messages",
            "context_length_exceeded",
        )
    limit = request.token_limit
    if limit is not None and limit > room:
        raise ApiError(
            400,
            f"the messages take {len(prompt)} tokens, so at most {room} can be generated, not {limit}",
            "max_tokens",
            "context_length_exceeded",
        )
    temperature = config.default_temperature if request.temperature is None else request.temperature
    sampling = Sampling(
        max_new_tokens=limit or min(config.default_max_tokens, room),
        temperature=temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        n=request.n,
        seed=seed,
        stop_token_ids=served.engine.tokenizer.stop_ids,
    )
    return Plan(prompt, sampling, tuple(request.stops), tools)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop string begins in `text`."""
    return min((place for place in (text.find(stop) for stop in stops) if place >= 0), default=None)


@dataclass(frozen=True)
class Answer:
    """One finished answer."""

    completion: Completion
    text: str
    output: AssistantMessage
    finish: str

    @property
    def finish_reason(self) -> str:
        """OpenAI's finish reason."""
        return "tool_calls" if self.output.tool_calls and self.finish == "stop" else self.finish


def finish_answer(completion: Completion, plan: Plan, tokenizer: Tokenizer) -> Answer:
    """Cut at the first stop string, drop the end token from the text, and take the text apart.

    The token ids kept are the shortest run whose text holds the stop string: what the model really wrote, for
    training, while the client's text ends before it, as OpenAI's does.
    """
    ids = completion.token_ids
    ended = completion.finish == "stop" and bool(ids) and ids[-1] in (plan.sampling.stop_token_ids or ())
    text = tokenizer.decode(ids[:-1] if ended else ids)
    finish: str = completion.finish
    place = first_stop(text, plan.stops)
    if place is not None:
        size = next(
            size for size in range(len(ids) + 1) if first_stop(tokenizer.decode(ids[:size]), plan.stops) is not None
        )
        completion = completion.cut(size, "stop")
        text, finish = text[:place], "stop"
    parser = plan.parser(tokenizer)
    parser.feed(text)
    parser.close()
    text = with_prompt(prompt_thinking(tokenizer, plan.prompt), text)
    return Answer(completion, text, parser.message, finish)


def call_key(completion_id: str, choice: int, number: int) -> str:
    """Id of one tool call; a function of its place, so equal traffic gives equal ids."""
    return "call_" + hashlib.sha256(f"{completion_id}/{choice}/{number}".encode()).hexdigest()[:24]


def token_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """One entry of `logprobs.content`."""
    text = tokenizer.decode([token_id])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8")), "top_logprobs": []}


def choice_body(answer: Answer, number: int, completion_id: str, tokenizer: Tokenizer, logprobs: bool) -> Any:
    """One entry of `choices`."""
    keys = [call_key(completion_id, number, position) for position in range(len(answer.output.tool_calls))]
    entries = [
        token_entry(tokenizer, token, value)
        for token, value in zip(answer.completion.token_ids, answer.completion.logprobs, strict=True)
    ]
    return {
        "index": number,
        "message": answer.output.to_openai(keys),
        "finish_reason": answer.finish_reason,
        "logprobs": {"content": entries} if logprobs else None,
    }


def usage_body(plan: Plan, completions: Sequence[Completion]) -> dict[str, int]:
    """Token counts of a request."""
    written = sum(len(completion.token_ids) for completion in completions)
    read = len(plan.prompt)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
