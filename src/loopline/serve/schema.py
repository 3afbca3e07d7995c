"""What clients may send: the request bodies, checked before any compute, and OpenAI's error shape.

Settings that would change the answer and that this server does not implement are refused, never ignored. Not
covered: the replies (built in `serve.app`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Settings of OpenAI's API that change the answer, with the value that means "off".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "response_format": ({"type": "text"}, None),
    "top_logprobs": (0, None),
    "functions": ([], None),
    "function_call": (None,),
    "modalities": (["text"], None),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
}


class ApiError(Exception):
    """An error reply: HTTP status, sentence, OpenAI type, offending parameter and code."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """Options of a streamed reply."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    n: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    metadata: dict[str, Any] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_implemented(self) -> ChatRequest:
        for name, off in _UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value not in off:
                raise ValueError(f"{name} is not supported by this server; leave it out")
        if self.tool_choice not in (None, "auto", "none"):
            raise ValueError("tool_choice must be 'auto' or 'none': this server does not force a call")
        if any(not stop for stop in self.stops):
            raise ValueError("stop must not hold an empty string")
        if len(self.stops) > 4:
            raise ValueError("stop may hold at most 4 strings")
        for number, tool in enumerate(self.tools or []):
            if tool.get("type") != "function" or not isinstance(tool.get("function", {}).get("name"), str):
                raise ValueError(f"tools[{number}] must be {{'type': 'function', 'function': {{'name': ...}}}}")
        return self

    @property
    def stops(self) -> list[str]:
        """Stop strings."""
        return [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def use_tools(self) -> bool:
        """Whether calls in the answer become `tool_calls`."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def token_limit(self) -> int | None:
        """The smaller of the two names for the same limit."""
        return min((limit for limit in (self.max_tokens, self.max_completion_tokens) if limit), default=None)


class FeedbackRequest(BaseModel):
    """Body of POST /v1/feedback: `id` is the completion's id, `choice` which of its `n` answers."""

    model_config = ConfigDict(extra="forbid")

    id: str
    name: Literal["thumbs", "correction", "refusal_complaint", "rating", "regenerated", "edited", "comment"]
    value: bool | int | float | str
    choice: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _values_fit_names(self) -> FeedbackRequest:
        if self.name == "thumbs" and self.value not in ("up", "down", 1, -1, True, False):
            raise ValueError("thumbs takes 'up' or 'down'")
        if self.name in ("correction", "edited", "comment") and not (isinstance(self.value, str) and self.value):
            raise ValueError(f"{self.name} takes the text")
        return self
