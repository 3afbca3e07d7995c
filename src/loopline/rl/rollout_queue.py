"""The queue between collecting and training: a rollout is collected right before it is trained on, or ahead of it.

    queue = RolloutQueue(collector, staleness=1, background="thread")
    rollout = queue.take(number, version)

With staleness s, rollout n is collected with the weights of the moment rollout n - s was taken, on a copy of the model
in a thread or process of its own, while the rollouts in between are trained on. Which weights a rollout uses is fixed
by its number, so what is trained depends on the seed alone: in the background or not, the samples are the same. The
copy's weights are compared with the trainer's by fingerprint after every transfer. The state holds whatever is
collected already, so a resumed run trains on the same samples. Not covered: changing weights in the middle of a sample,
several workers.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from loopline.base.errors import UserError
from loopline.inference.engine import TorchEngine
from loopline.inference.fingerprint import fingerprint
from loopline.rl.collect import Collector, Memory, Rollout, pack_rollout, unpack_rollout

Weights = Mapping[str, Tensor]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights that training will not change."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class Worker(Protocol):
    """Where a rollout is collected."""

    def collect(self, weights: Weights, number: int, version: int, memory: Memory) -> tuple[Rollout, Memory]:
        """Rollout `number` from `weights`, called `version`."""
        ...

    def close(self) -> None:
        """End whatever it runs."""
        ...


class LocalWorker:
    """Collects in this process, on a copy of the collector's model."""

    def __init__(self, collector: Collector) -> None:
        engine = collector.engine
        self.collector = copy.copy(collector)
        self.collector.engine = TorchEngine(
            copy.deepcopy(engine.model).eval(), engine.tokenizer, engine.batch_size, engine.version
        )

    def collect(self, weights: Weights, number: int, version: int, memory: Memory) -> tuple[Rollout, Memory]:
        load_checked(self.collector, weights, version, fingerprint(weights))
        return self.collector.collect(number, version, memory)

    def close(self) -> None:
        """Nothing to end."""


def load_checked(collector: Collector, weights: Weights, version: int, expected: str) -> None:
    """Give the collector's engine `weights`. Raises `UserError` when it then holds others."""
    collector.engine.load(weights, version, expected)
    found = collector.engine.fingerprint()
    if found != expected:
        raise UserError(
            f"The sampler does not have version {version} of the weights: its fingerprint is {found[:12]}, the "
            f"trainer's {expected[:12]}",
            "the engine's `load` must take over every tensor; a part of the model may be frozen, cast or renamed",
        )


class ProcessWorker:
    """Collects in a process of its own, which ends with this one however this one ends."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Collector]], threads: int) -> None:
        """`make` is pickled; it builds the collector inside the process."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, threads), daemon=True)
        self.process.start()
        theirs.close()

    def collect(self, weights: Weights, number: int, version: int, memory: Memory) -> tuple[Rollout, Memory]:
        request = {
            "weights": {name: value.cpu() for name, value in weights.items()},
            "fingerprint": fingerprint(weights),
            "number": number,
            "version": version,
            "memory": asdict(memory),
        }
        try:
            self.connection.send_bytes(pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL))
            reply = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.process.join(timeout=5)
            raise UserError(
                f"The rollout process ended with status {self.process.exitcode} while it collected rollout {number}",
                "if the machine ran out of memory, set rollout.runtime.background to off; its own message stands above",
            ) from error
        if "error" in reply:
            raise reply["error"]
        return unpack_rollout(reply["rollout"]), Memory(**reply["memory"])

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def serve(
    connection: Connection, make: Callable[[], contextlib.AbstractContextManager[Collector]], threads: int
) -> None:
    """Answer requests until the other side is gone. Runs in the rollout process."""
    torch.set_num_threads(threads)
    # A parent that was killed cannot say goodbye, and a rollout may take minutes.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with make() as collector:
        while True:
            try:
                request = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                load_checked(collector, request["weights"], request["version"], request["fingerprint"])
                rollout, memory = collector.collect(request["number"], request["version"], Memory(**request["memory"]))
                reply: dict[str, Any] = {"rollout": pack_rollout(rollout), "memory": asdict(memory)}
            except Exception as error:
                reply = {"error": _picklable(error)}
            try:
                connection.send_bytes(pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL))
            except OSError:
                return


def _end_with(parent: int) -> None:
    """End this process soon after its parent is gone."""
    wait = threading.Event()
    while os.getppid() == parent:
        wait.wait(0.2)
    os._exit(1)


def _picklable(error: Exception) -> Exception:
    """The error, or where it cannot travel its text."""
    if isinstance(error, UserError):
        return error
    return RuntimeError(f"the rollout process: {type(error).__name__}: {error}")


class RolloutQueue:
    """Hands out rollouts in order, and collects ahead as far as `staleness` allows."""

    def __init__(
        self,
        collector: Collector,
        staleness: int = 0,
        background: Literal["off", "thread", "process"] = "off",
        worker: Worker | None = None,
    ) -> None:
        """The engine of `collector` holds the very model that is trained; `worker` collects in the background."""
        if background != "off" and not staleness:
            raise UserError(
                f"rollout.runtime.background is {background!r} but rollout.staleness is 0: nothing may be collected "
                "ahead",
                "set rollout.staleness to 1, or background to off",
            )
        self.collector, self.staleness = collector, staleness
        self.memory = Memory()
        self._pending: dict[int, Future[tuple[Rollout, Memory]]] = {}
        self._worker: Worker | None = None
        self._pool: ThreadPoolExecutor | None = None
        if background != "off":
            self._worker = worker or LocalWorker(collector)
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollouts")

    def take(self, number: int, version: int) -> Rollout:
        """Rollout `number`; the model's weights at this moment are called `version`.

        Rollouts up to `number + staleness` are started from them. Raises whatever collecting raised.
        """
        if not self.staleness:
            rollout, self.memory = self.collector.collect(number, version, self.memory)
            return rollout
        for skipped in [n for n in self._pending if n < number]:
            # Nobody wants it any more, but the next one's memory depends on it.
            self._pending.pop(skipped).result()
        missing = [n for n in range(number, number + self.staleness + 1) if n not in self._pending]
        if self._pool is None:
            for wanted in missing:
                done: Future[tuple[Rollout, Memory]] = Future()
                done.set_result(self.collector.collect(wanted, version, self.memory))
                self.memory = done.result()[1]
                self._pending[wanted] = done
        elif missing:
            weights = snapshot(self.collector.engine.model)
            for wanted in missing:
                self._pending[wanted] = self._pool.submit(self._collect, weights, wanted, version)
        return self._pending.pop(number).result()[0]

    def _collect(self, weights: Weights, number: int, version: int) -> tuple[Rollout, Memory]:
        """One rollout, in the background thread: one at a time and in order, so each sees the memory of the last."""
        assert self._worker is not None
        rollout, self.memory = self._worker.collect(weights, number, version, self.memory)
        return rollout, self.memory

    def state_dict(self) -> dict[str, Any]:
        """Whatever is collected ahead, waited for, and the memory."""
        pending = [pack_rollout(self._pending[number].result()[0]) for number in sorted(self._pending)]
        return {"memory": asdict(self.memory), "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for future in self._pending.values():
            future.result()
        self.memory = Memory(**state["memory"])
        self._pending = {}
        for row in state["pending"]:
            done: Future[tuple[Rollout, Memory]] = Future()
            done.set_result((unpack_rollout(row), self.memory))
            self._pending[row["number"]] = done

    def close(self) -> None:
        """End the background."""
        if self._worker is not None:
            self._worker.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
