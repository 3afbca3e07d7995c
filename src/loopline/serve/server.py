"""Running the service: `serve(...)` in the foreground, `BackgroundServer` inside another program.

    with BackgroundServer(served, ServeConfig(), records) as server:
        httpx.get(server.url + "/health")

Not covered: several worker processes (one engine owns the device; start one server per device behind a proxy).
"""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import TracebackType

import uvicorn

from loopline.base.errors import UserError
from loopline.serve.app import Service, create_app
from loopline.serve.config import ServeConfig
from loopline.serve.model import ServedModel
from loopline.serve.records import Records


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises `UserError` when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be named: asyncio turns Nagle's algorithm off only on sockets that say they are TCP, and with it
    # on every reply waits 40 ms for the client's delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UserError(
            f"Cannot listen on {host}:{port} ({error.strerror})", "choose another --port, or stop the other server"
        ) from error
    return bound


class BackgroundServer:
    """The real server in a thread of this process, on a free local port; a context manager that always shuts down."""

    def __init__(self, served: ServedModel, config: ServeConfig, records: Records | None, port: int = 0) -> None:
        self.app = create_app(served, config, records)
        self.service: Service = self.app.state.service
        self._socket = listen("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("the server did not start") from self._failure
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop taking requests, finish what runs, end the threads."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            self._failure = error
            raise


def serve(
    model: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    database: str | Path | None = "traffic.sqlite",
    config: ServeConfig | None = None,
    device: str = "cpu",
) -> None:
    """Serve a checkpoint or release directory until interrupted. `database` None records nothing."""
    bound = listen(host, port)
    try:
        served = ServedModel.load(model, device=device)
        config = config or ServeConfig()
        records = None if database is None else Records.open(database, config.busy_timeout_ms)
        app = create_app(served, config, records)
        server = uvicorn.Server(uvicorn.Config(app, log_level="info", timeout_graceful_shutdown=30))
        try:
            server.run(sockets=[bound])
        finally:
            if records is not None:
                records.close()
    finally:
        bound.close()
