"""The traffic stage: the real server, scripted users, and the recorded requests as an artifact.

    loopline run laptop --until traffic

Writes requests.jsonl, equal bytes for equal inputs and seed, and log/traffic.sqlite, the database with its times.
With `live` set (see `loopline loop traffic`) it exports recorded traffic instead of playing users.
Not covered: what becomes of the rows (see `corpus.traffic`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from loopline.base.errors import UserError
from loopline.base.files import write_jsonl
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.serve.answers import plan_request
from loopline.serve.app import Service
from loopline.serve.config import ServeConfig, TrafficConfig
from loopline.serve.export import export_rows, traffic_digest
from loopline.serve.model import ServedModel
from loopline.serve.records import Records
from loopline.serve.schema import ApiError, ChatRequest
from loopline.serve.server import BackgroundServer
from loopline.serve.users import Conversation, cast, reactions
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_chosen, load_tasks

# Said once to the users of the stage: (conversation, its answer's id, what the client saw, how it ended).
Reply = tuple[Conversation, str, str, str]


def traffic(config: TrafficConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Serve `inputs["release"]`, play scripted users over `inputs["tasks"]`, write requests.jsonl.

    `inputs["graders"]` judges the answers that users react to. Raises `UserError` when the tasks are too few.
    """
    if config.live.database is not None:
        rows = live_rows(config.live.database, config.live_digest)
    else:
        rows = scripted_rows(config, ServedModel.load(inputs["release"].path, ctx.device), inputs, ctx)
    write_jsonl(ctx.out / "requests.jsonl", rows)
    ctx.metrics.summary(
        headline=f"{len(rows)} answers recorded, {sum(bool(row['feedback']) for row in rows)} with feedback",
        requests=len(rows),
        consented=sum(row["consent"] for row in rows),
        with_feedback=sum(bool(row["feedback"]) for row in rows),
    )


def live_rows(database: str, digest: str | None) -> list[dict[str, Any]]:
    """The rows of recorded traffic. Raises `UserError` when it changed since its digest was taken."""
    records = Records.open(database, create=False)
    try:
        if traffic_digest(records) != digest:
            raise UserError(
                f"The traffic in {database} changed since the loop read it",
                "run `loopline loop traffic` again; stop the server first, or copy the database",
            )
        return export_rows(records)
    finally:
        records.close()


def scripted_rows(
    config: TrafficConfig, served: ServedModel, inputs: Mapping[str, Artifact], ctx: Context
) -> list[dict[str, Any]]:
    """Play the scripted users against a real server and export what it recorded."""
    conversations = cast(asked_about(config, inputs["tasks"]), config, ctx.seed_for("users"))
    database = fresh_database(ctx.out / "log" / "traffic.sqlite")
    records = Records.open(database)
    settings = ServeConfig(max_batch=config.wave, window_ms=0, max_queue=max(512, config.wave))
    try:
        with (
            GraderSet.from_json(inputs["graders"] / "graders.json") as graders,
            BackgroundServer(served, settings, records) as server,
            httpx.Client(base_url=server.url, timeout=600) as client,
            ThreadPoolExecutor(config.wave, thread_name_prefix="user") as pool,
            ctx.progress("production traffic", len(conversations)) as bar,
        ):

            def ask_all(bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
                return send_wave(client, server.service, pool, bodies)

            for replies, finished in play(conversations, config, server.service, ask_all):
                react(client, graders, replies, ctx.seed_for("feedback"))
                bar.advance(finished)
        return export_rows(records, rename=True)
    finally:
        records.close()


def asked_about(config: TrafficConfig, tasks: Artifact) -> list[Task]:
    """The training tasks that users ask about. Raises `UserError` when there are none."""
    file = tasks / "train.jsonl"
    if config.tasks:
        return load_chosen(file, config.tasks)
    found = [task for task in load_tasks(file) if "tools" not in task.tags]
    if not found:
        raise UserError(f"Every task of {file} needs tools, which a plain conversation has not", "choose `tasks`")
    return found


def fresh_database(path: Path) -> Path:
    """`path`, with whatever an interrupted attempt left there removed."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path


def send_wave(
    client: httpx.Client, service: Service, pool: ThreadPoolExecutor, bodies: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Send requests at once, as one batch, and return the replies in order. Raises `RuntimeError` for a refused one."""

    def send(body: dict[str, Any]) -> dict[str, Any]:
        response = client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            # The others must not wait for the one that will never join their batch.
            service.worker.expect(None)
            raise RuntimeError(f"the server answered {response.status_code}: {response.text}")
        return dict(response.json())

    service.worker.expect(len(bodies))
    try:
        return list(pool.map(send, bodies))
    finally:
        service.worker.expect(None)


def play(
    conversations: Sequence[Conversation],
    config: TrafficConfig,
    service: Service,
    ask_all: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]],
) -> Iterator[tuple[list[Reply], int]]:
    """Yield (replies, conversations that ended) per wave; the conversations' first turns come before second ones."""
    running = list(conversations)
    while running:
        going_on: list[Conversation] = []
        for start in range(0, len(running), config.wave):
            wave = running[start : start + config.wave]
            asked = [(one, body) for one in wave if (body := one.next_request(config)) and fits(service, body)]
            answers = ask_all([body for _, body in asked]) if asked else []
            replies: list[Reply] = []
            for (one, _), answer in zip(asked, answers, strict=True):
                choice = answer["choices"][0]
                replies.append((one, answer["id"], choice["message"]["content"] or "", choice["finish_reason"]))
            yield replies, 0
            for one, _, content, _ in replies:
                one.take(content)
            left = [one for one, _, _, _ in replies if one.turn < len(one.questions)]
            going_on += left
            yield [], len(wave) - len(left)
        running = going_on


def fits(service: Service, body: dict[str, Any]) -> bool:
    """Whether the conversation still fits the model; users whose doesn't leave."""
    try:
        plan_request(ChatRequest.model_validate(body), service.served, service.config, 0)
    except ApiError:
        return False
    return True


def react(client: httpx.Client, graders: GraderSet, replies: Sequence[Reply], seed: int) -> None:
    """Grade what the users saw and send their feedback, in order."""
    watched = [reply for reply in replies if reply[0].gives_feedback]
    samples = [Sample(task=one.task, text=content, finish=finish) for one, _, content, finish in watched]
    for (one, answer_id, content, _), grade in zip(watched, graders.grade(samples), strict=True):
        # Users of refused recording still react; their feedback is stored and never exported.
        rng = random.Random(f"{seed}/{one.name}/{one.turn}")
        for item in reactions(one.task, grade.score, content, rng):
            client.post("/v1/feedback", json={"id": answer_id, **item}).raise_for_status()
