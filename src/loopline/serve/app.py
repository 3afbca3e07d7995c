"""The HTTP service: OpenAI's chat completions over one engine, with every answer recorded.

    app = create_app(ServedModel.load(path), ServeConfig(), Records.open("traffic.sqlite"))

POST /v1/chat/completions, GET /v1/models, GET /health, POST /v1/feedback. Consent to keep a conversation comes with
the request: `metadata: {"consent": true}` or the header `X-Consent: true`; a conversation is named by
`metadata.conversation` or `X-Conversation`. Not covered: TLS and user accounts (put a proxy in front).
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from loopline.serve.answers import Answer, Plan, choice_body, finish_answer, plan_request, usage_body
from loopline.serve.config import ServeConfig
from loopline.serve.model import ServedModel
from loopline.serve.records import Records, choice_id
from loopline.serve.schema import ApiError, ChatRequest, FeedbackRequest
from loopline.serve.streaming import StreamedAnswer, stream_chunks
from loopline.serve.worker import EngineWorker, QueueFull

log = logging.getLogger(__name__)
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


class Service:
    """One served model with its worker and its records."""

    def __init__(self, served: ServedModel, config: ServeConfig, records: Records | None) -> None:
        self.served, self.config, self.records = served, config, records
        self.worker = EngineWorker(
            served.engine, config.max_batch, config.window_ms / 1000, config.max_queue, served.context
        )

    def check(self, body: ChatRequest, request: Request) -> None:
        """Refuse a wrong key or model."""
        key = self.config.api_key
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key is not None and not secrets.compare_digest(given.encode(), key.encode()):
            raise ApiError(401, "send the server's API key as a bearer token", code="invalid_api_key")
        self.check_model(body.model)

    def check_model(self, name: str) -> None:
        """Refuse a model this server does not have."""
        if name not in (self.config.name, self.served.champion):
            raise ApiError(
                404,
                f"the model {name!r} does not exist here; this server has {self.config.name!r}",
                "model",
                "model_not_found",
            )

    def consents(self, body: ChatRequest, request: Request) -> bool:
        """Whether this conversation may be kept. Raises `ApiError` (400) for an answer that is neither yes nor no."""
        value = (body.metadata or {}).get("consent", request.headers.get("x-consent"))
        if value is None:
            return self.config.consent
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            raise ApiError(400, f"consent must be true or false, not {value!r}", "metadata.consent")
        return text in _TRUE

    def record(
        self,
        body: ChatRequest,
        request: Request,
        plan: Plan,
        completion_id: str,
        answers: Sequence[tuple[Answer, str]],
        started: float,
    ) -> None:
        """Insert one row per answer; without consent only counts are kept, or nothing."""
        consent = self.consents(body, request)
        if self.records is None or (not consent and self.config.without_consent == "nothing"):
            return
        metadata = body.metadata or {}
        conversation = metadata.get("conversation") or request.headers.get("x-conversation") or completion_id
        sampling = plan.sampling
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
            "n": sampling.n,
            "stop": list(plan.stops),
            "stream": body.stream,
        }
        if consent and body.tools:
            params["tools"] = body.tools
        rows = []
        for number, (answer, finish) in enumerate(answers):
            completion = answer.completion
            message = choice_body(answer, number, completion_id, self.served.engine.tokenizer, False)["message"]
            rows.append(
                {
                    "id": choice_id(completion_id, number),
                    "conversation": str(conversation),
                    "model": self.served.champion,
                    "weights_version": self.served.weights_version,
                    "harness_version": self.served.harness_version,
                    "params": params,
                    "input_messages": body.messages if consent else [],
                    # The exact text is kept beside its parts: training reads the text.
                    "output_message": {**message, "text": answer.text} if consent else {},
                    "prompt_token_ids": plan.prompt if consent else [],
                    "token_ids": completion.token_ids if consent else [],
                    "logprobs": completion.logprobs if consent else [],
                    "finish": finish,
                    "usage": usage_body(plan, [completion]),
                    "latency_ms": (time.perf_counter() - started) * 1000,
                    "user_hash": self.records.user_hash(body.user or request.headers.get("x-user")),
                    "consent": consent,
                }
            )
        self.records.add_requests(rows)


def _envelope(completion_id: str, kind: str, service: Service, created: int) -> dict[str, Any]:
    return {
        "id": completion_id,
        "object": kind,
        "created": created,
        "model": service.config.name,
        "system_fingerprint": f"{service.served.weights_version}-{service.served.harness_version}",
    }


def create_app(served: ServedModel, config: ServeConfig, records: Records | None = None) -> FastAPI:
    """The application; its worker thread ends with the application's lifespan. `app.state.service` is the `Service`."""
    service = Service(served, config, records)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(title="Loopline", lifespan=lifespan)
    app.state.service = service
    _install_errors(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": served.champion,
            "weights_version": served.weights_version,
            "harness_version": served.harness_version,
            "queued": service.worker.queued,
        }

    def model_body() -> dict[str, Any]:
        return {"id": config.name, "object": "model", "created": 0, "owned_by": "loopline", "root": served.champion}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_body()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model_body()

    @app.post("/v1/feedback")
    async def feedback(body: FeedbackRequest) -> dict[str, Any]:
        if records is None:
            raise ApiError(503, "this server records nothing, so it takes no feedback")
        try:
            number = await asyncio.to_thread(
                records.add_feedback, choice_id(body.id, body.choice), body.name, body.value
            )
        except KeyError as error:
            raise ApiError(404, f"there is no recorded answer {body.id!r} (choice {body.choice})", "id") from error
        return {"object": "feedback", "id": number, "request": body.id}

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        started = time.perf_counter()
        service.check(body, request)
        service.consents(body, request)
        seed = secrets.randbits(62) if body.seed is None else body.seed
        plan = await asyncio.to_thread(plan_request, body, served, config, seed)
        completion_id = f"chatcmpl-{secrets.token_hex(12)}"
        envelope = _envelope(completion_id, "chat.completion", service, int(time.time()))
        if body.stream and body.n == 1:
            return StreamingResponse(
                _events(service, body, request, plan, completion_id, started), media_type="text/event-stream"
            )
        try:
            completions = await asyncio.wrap_future(service.worker.submit(plan.prompt, plan.sampling))
        except QueueFull:
            raise
        except Exception as error:
            raise _failed(error) from error
        answers = [finish_answer(completion, plan, served.engine.tokenizer) for completion in completions]
        await asyncio.to_thread(
            service.record,
            body,
            request,
            plan,
            completion_id,
            [(answer, answer.finish_reason) for answer in answers],
            started,
        )
        choices = [
            choice_body(answer, number, completion_id, served.engine.tokenizer, bool(body.logprobs))
            for number, answer in enumerate(answers)
        ]
        usage = usage_body(plan, [answer.completion for answer in answers])
        if body.stream:
            envelope["object"] = "chat.completion.chunk"
            return StreamingResponse(_replay(envelope, choices, usage, body), media_type="text/event-stream")
        return JSONResponse({**envelope, "choices": choices, "usage": usage})

    return app


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _wants_usage(body: ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


async def _events(
    service: Service, body: ChatRequest, request: Request, plan: Plan, completion_id: str, started: float
) -> AsyncIterator[str]:
    """Server-sent events of one streamed answer; recorded also when the client leaves early."""
    envelope = _envelope(completion_id, "chat.completion.chunk", service, int(time.time()))
    wants_usage = _wants_usage(body)

    def chunk(delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return {**envelope, "choices": [choice], **({"usage": None} if wants_usage else {})}

    state = StreamedAnswer()
    finish: str | None = "cancelled"
    try:
        chunks = stream_chunks(service.worker, plan, completion_id, bool(body.logprobs), chunk, state)
        async with aclosing(chunks):
            async for item in chunks:
                if item["choices"][0]["finish_reason"] is not None:
                    assert state.answer is not None
                    # Recorded before the last chunk, so that feedback sent right after it finds the row.
                    finish = None
                    answers = [(state.answer, state.answer.finish_reason)]
                    await asyncio.to_thread(service.record, body, request, plan, completion_id, answers, started)
                yield _event(item)
        if wants_usage and state.answer is not None:
            usage = usage_body(plan, [state.answer.completion])
            yield _event({**envelope, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    except QueueFull:
        finish = None
        yield _event(_busy().body())
    except Exception as error:
        finish = "error"
        yield _event(_failed(error).body())
    finally:
        if finish is not None and state.answer is not None and state.token_ids:
            service.record(body, request, plan, completion_id, [(state.answer, finish)], started)


async def _replay(
    envelope: dict[str, Any], choices: Sequence[dict[str, Any]], usage: dict[str, int], body: ChatRequest
) -> AsyncIterator[str]:
    """Several choices, generated together, as a stream of one chunk each."""
    for choice in choices:
        delta = dict(choice["message"])
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(delta["tool_calls"])]
        first = {"index": choice["index"], "delta": delta, "finish_reason": None, "logprobs": choice["logprobs"]}
        last = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None}
        yield _event({**envelope, "choices": [first]})
        yield _event({**envelope, "choices": [last]})
    if _wants_usage(body):
        yield _event({**envelope, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _busy() -> ApiError:
    return ApiError(429, "the server's queue is full; try again shortly", code="queue_full", kind="rate_limit_error")


def _failed(error: Exception) -> ApiError:
    """The reply to a defect: the log gets the traceback, the client only its name."""
    log.error("generation failed", exc_info=error)
    return ApiError(500, f"generation failed: {type(error).__name__}")


def _install_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    @app.exception_handler(QueueFull)
    async def queue_full(_request: Request, _error: QueueFull) -> JSONResponse:
        return JSONResponse(_busy().body(), status_code=429, headers={"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        body = ApiError(400, f"{where}: {message}" if where else message, where or None).body()
        return JSONResponse(body, status_code=400)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body(), status_code=error.status_code)

    @app.exception_handler(Exception)
    async def defect(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(_failed(error).body(), status_code=500)
