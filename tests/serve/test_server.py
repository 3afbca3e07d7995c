"""Sockets, start and stop."""

from __future__ import annotations

import socket

import httpx
import pytest

from loopline.base.errors import UserError
from loopline.inference.engine import Sampling
from loopline.serve.config import ServeConfig
from loopline.serve.server import BackgroundServer, listen
from tests.serve.scripted import ScriptedEngine, served
from tests.support_model import tiny_tokenizer


def test_a_taken_port_is_named():
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}.*choose another --port"):
            listen("127.0.0.1", port)


def test_accepted_connections_send_at_once():
    # asyncio sets TCP_NODELAY only where the socket names its protocol.
    with listen("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_the_server_stops_and_frees_its_port(tmp_path):
    engine = ScriptedEngine(tiny_tokenizer(tmp_path), lambda text, seed: "ok")
    with BackgroundServer(served(engine), ServeConfig(), None) as server:
        health = httpx.get(server.url + "/health").json()
        assert health["status"] == "ok" and health["weights_version"] == "weights-1"
        feedback = httpx.post(server.url + "/v1/feedback", json={"id": "x", "name": "thumbs", "value": "up"})
        assert feedback.status_code == 503
    port = int(server.url.rsplit(":", 1)[1])
    listen("127.0.0.1", port).close()
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url + "/health")
    with pytest.raises(RuntimeError, match="shutting down"):
        server.service.worker.submit([20], Sampling())
