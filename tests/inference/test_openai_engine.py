"""The HTTP engine against the project's own server, in process, and against servers that fail in every way."""

import asyncio
import json

import httpx
import pytest

from loopline.base.errors import UserError
from loopline.chat.tokenizer import SPECIAL_TOKENS
from loopline.inference.engine import Engine, Sampling, TorchEngine
from loopline.inference.openai_engine import OpenAIEngine, messages_of
from loopline.serve.app import create_app
from loopline.serve.config import ServeConfig
from loopline.serve.model import ServedModel
from tests.support_model import tiny_model, tiny_tokenizer

URL = "http://server/v1"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return TorchEngine(tiny_model(5), tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def app(local):
    served = ServedModel(local, "align", "weights", "harness", local.model.config.max_position_embeddings)
    app = create_app(served, ServeConfig(api_key="a secret key"))
    yield app
    app.state.service.worker.close()


@pytest.fixture
def remote(app, local):
    return OpenAIEngine(
        URL,
        "loopline",
        local.tokenizer,
        api_key="a secret key",
        mode="chat",
        transport=httpx.ASGITransport(app=app),
        first_wait=0.0,
    )


def conversations(count):
    return [[{"role": "user", "content": f"one plus {'two ' * (number + 1)}"}] for number in range(count)]


def spelled_once(engine, completion):
    texts = [engine.tokenizer.decode([number]) for number in range(engine.tokenizer.vocab_size)]
    return all(texts.count(texts[token]) == 1 for token in completion.token_ids)


def test_the_server_gives_what_the_engine_gives(remote, local):
    prompts = [local.tokenizer.render(messages, add_generation_prompt=True) for messages in conversations(5)]
    sampling = Sampling(3, temperature=0.8, n=8)
    seeds = [11, 22, 33, 44, 55]
    engine: Engine = remote
    there, here = engine.generate(prompts, sampling, seeds), local.generate(prompts, sampling, seeds)
    exact = 0
    for theirs, ours in zip(there, here, strict=True):
        for one, other in zip(theirs, ours, strict=True):
            assert one.finish == other.finish and one.number == other.number
            # Half a character spells nothing of its own, so such rows come back as text only.
            if spelled_once(local, other):
                assert one.token_ids == other.token_ids
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                exact += 1
            else:
                assert one.logprobs == []
    assert exact >= 3


def test_replies_in_text_need_no_tokenizer(app, local):
    engine = OpenAIEngine(URL, "loopline", api_key="a secret key", transport=httpx.ASGITransport(app=app))
    asked = conversations(2)
    replies = engine.chat(asked, Sampling(6, temperature=0, n=2))
    for messages, group in zip(asked, replies, strict=True):
        prompt = local.tokenizer.render(messages, add_generation_prompt=True)
        done = local.generate([prompt], Sampling(6, temperature=0))[0][0]
        assert [reply.tokens for reply in group] == [[local.tokenizer.decode([i]) for i in done.token_ids]] * 2
        assert all(reply.logprobs == pytest.approx(done.logprobs, abs=1e-4) for reply in group)
    with pytest.raises(UserError, match="tokenizer"):
        engine.generate([[3, 20, 4]], Sampling(2))


def test_it_works_inside_a_running_event_loop(remote):
    async def inside():
        return remote.chat(conversations(1), Sampling(3))

    assert len(asyncio.run(inside())[0]) == 1


def test_streaming_gives_what_generating_gives(remote, local):
    prompt = local.tokenizer.render(conversations(1)[0], add_generation_prompt=True)
    for seed in range(40):
        whole = local.generate([prompt], Sampling(3, seed=seed), [seed])[0][0]
        if spelled_once(local, whole):
            break
    streamed = list(remote.stream(prompt, Sampling(3, seed=seed)))
    assert [token for token, _ in streamed] == whole.token_ids
    assert [logprob for _, logprob in streamed] == pytest.approx(whole.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api_key": "wrong"}, "status 401.*api_key"),
        ({"model": "other"}, "status 404.*'other'"),
    ],
)
def test_refusals_say_what_to_change(app, local, change, message):
    settings = {"model": "loopline", "api_key": "a secret key", **change}
    transport = httpx.ASGITransport(app=app)
    engine = OpenAIEngine(URL, tokenizer=local.tokenizer, mode="chat", transport=transport, **settings)
    with pytest.raises(UserError, match=message):
        engine.chat(conversations(1), Sampling(3))


def test_what_the_server_does_not_take_is_told_in_its_words(remote, local):
    with pytest.raises(UserError, match="status 400.*at most"):
        remote.chat(conversations(1), Sampling(4000))
    with pytest.raises(UserError, match="thinking_budget"):
        remote.chat(conversations(1), Sampling(4, thinking_budget=3))


class Server:
    """A server that answers a list of replies in turn, the last one for ever."""

    def __init__(self, *replies):
        self.replies, self.bodies, self.running, self.most = list(replies), [], 0, 0

    async def __call__(self, request):
        self.bodies.append(json.loads(request.content))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, httpx.Response) else httpx.Response(200, json=reply(self.bodies[-1]))

    def engine(self, tokenizer=None, **settings):
        return OpenAIEngine(
            URL, "m", tokenizer, transport=httpx.MockTransport(self), **{"first_wait": 0.001, "attempts": 4, **settings}
        )


def completions(body):
    """What a server answers that continues with the token " plus" and ends."""
    logprobs = {"tokens": ["o", "n"], "token_logprobs": [-0.5, -0.25]}
    choice = {"text": "on", "logprobs": logprobs, "finish_reason": "stop"}
    # Out of order, as choices may come.
    return {"choices": [{**choice, "index": number} for number in reversed(range(body["n"]))]}


def test_busy_and_failing_servers_are_asked_again(local):
    failures = [
        httpx.Response(429, headers={"Retry-After": "0"}, json={"error": {"message": "busy"}}),
        httpx.Response(503, text="down"),
        httpx.ReadTimeout("slow"),
    ]
    server = Server(*failures, completions)
    done = server.engine(local.tokenizer).generate([[3, 20, 4]], Sampling(5, n=2, top_k=4, stop=("x",)))
    assert [completion.token_ids for completion in done[0]] == [
        local.tokenizer.encode("o") + local.tokenizer.encode("n")
    ] * 2
    assert done[0][0].logprobs == [-0.5, -0.25] and [c.number for c in done[0]] == [0, 1]
    assert len(server.bodies) == 4
    body = server.bodies[-1]
    assert body["prompt"] == [3, 20, 4] and body["top_k"] == 4 and body["stop"] == ["x"] and body["max_tokens"] == 5


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (httpx.Response(500, json={"error": {"message": "broken"}}), "4 attempts.*status 500: broken"),
        (httpx.ConnectError("refused"), "no connection.*refused"),
        (httpx.ReadTimeout("slow"), "no answer within"),
    ],
)
def test_a_server_that_never_answers_is_given_up(failure, message):
    server = Server(failure)
    with pytest.raises(UserError, match=message):
        server.engine().chat(conversations(1), Sampling(3))
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(200, text="<html>"), "not one of OpenAI's API"),
        (httpx.Response(200, json={"choices": [{"message": {"content": "a"}}]}), "1 choices came back instead of 2"),
        (httpx.Response(422, json={"error": {"message": "no such thing"}}), "status 422: no such thing"),
    ],
)
def test_other_replies_are_refused_at_once(reply, message):
    server = Server(reply)
    with pytest.raises(UserError, match=message):
        server.engine().chat(conversations(1), Sampling(3, n=2))
    assert len(server.bodies) == 1


def test_no_more_requests_run_at_once_than_allowed(local):
    server = Server(completions)
    done = server.engine(local.tokenizer, concurrency=3).generate([[3, 20 + i, 4] for i in range(12)], Sampling(5))
    assert len(done) == 12 and server.most == 3
    assert [body["seed"] for body in server.bodies] == list(range(12))


def test_ids_from_the_server_are_taken_as_they_are(local):
    def reply(body):
        assert body["return_token_ids"]
        logprobs = {"tokens": ["?", "?"], "token_logprobs": [-1.0, -2.0]}
        return {"choices": [{"text": "??", "token_ids": [77, 1], "logprobs": logprobs, "finish_reason": "stop"}]}

    done = Server(reply).engine(local.tokenizer, ask_token_ids=True, version=9).generate([[3, 20, 4]], Sampling(5))
    assert (done[0][0].token_ids, done[0][0].logprobs, done[0][0].policy_version) == ([77, 1], [-1.0, -2.0], 9)


def test_conversations_are_found_in_prompts_and_nothing_else_is(local):
    tokenizer = local.tokenizer
    messages = [
        {"role": "system", "content": "one"},
        {"role": "user", "content": "two is"},
        {"role": "assistant", "content": "<think>three</think>3"},
        {"role": "tool", "content": "four"},
    ]
    assert messages_of(tokenizer, tokenizer.render(messages, add_generation_prompt=True)) == messages
    for prompt in ([20, 21], tokenizer.render(messages), [3, 20, 4, 21], [20, 3, 21, 4]):
        with pytest.raises(UserError, match="no conversation"):
            messages_of(tokenizer, prompt)
    assert SPECIAL_TOKENS[3] == "<|user|>"
