"""Ask a policy: render the prompts, sample, cut the stop, decode, grade, and keep what is done.

    groups = ask(engine, tasks, Sampling(n=8, max_new_tokens=64), graders=graders, seed=7, state=ctx.state)
    groups[0][3].text, groups[0][3].score

Evaluation, rollouts, rejection sampling, preference pairs, traces and probes of graders all use this function. With
`state` finished chunks of tasks are saved under keys made of all they depend on (weights, settings, seeds, tasks,
graders): a run that was killed goes on with them, and other settings never reuse them. A task's samples depend on its
prompt, the settings and its seed alone, not on the other tasks, the chunk or the machine's speed. Not covered:
several turns with tools (see `attempts.program`), what grades are worth (see `grading.reward`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loopline.attempts.attempt import Attempt, attempt_from_row
from loopline.attempts.grading import Grading
from loopline.base.config import sha256_of
from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_jsonl
from loopline.chat.tokenizer import Tokenizer
from loopline.grading.graders import GraderSet
from loopline.inference.completion import Completion
from loopline.inference.engine import Engine
from loopline.inference.openai_engine import OpenAIEngine
from loopline.inference.sampling import Sampling
from loopline.tasks.task import Task

CHUNK = 64
"""Tasks between two saves."""


def ask(
    engine: Engine,
    tasks: Sequence[Task],
    sampling: Sampling,
    *,
    graders: GraderSet | None = None,
    also: Sequence[str] = (),
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    thinking: bool | Sequence[bool] = True,
    state: Path | None = None,
    chunk: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Attempt]]:
    """`sampling.n` attempts at each task, in the order of `tasks`.

    With `graders` each is graded by its task's own grader, and by those of the set that `also` names. A task's samples
    come from `seed` and its id, or from the seed that `seeds` gives it. `thinking` false, for all tasks or one by one,
    closes the thinking part in the prompt. With `state`, `chunk` tasks (`CHUNK` by default) are asked at once.
    `progress` gets the number of tasks that are done. Raises `UserError` for a prompt that does not fit, a grader that
    is not defined, and a template that cannot close thinking.
    """
    switches = [thinking] * len(tasks) if isinstance(thinking, bool) else list(thinking)
    seeds = [seed_of(seed, task.id) for task in tasks] if seeds is None else seeds
    if state is None:
        return _ask(engine, tasks, sampling, graders, also, seeds, switches, progress)
    weights, chunk = engine.fingerprint(), chunk or CHUNK
    groups: list[list[Attempt]] = []
    for start in range(0, len(tasks), chunk):
        part = slice(start, start + chunk)
        some = tasks[part]
        names = {*also, *(task.grader for task in some)} if graders is not None else set()
        key = sha256_of(
            {
                "weights": weights,
                "tasks": [task.model_dump(mode="json") for task in some],
                "sampling": asdict(sampling),
                "seeds": list(seeds[part]),
                "thinking": switches[part],
                "graders": {name: graders.definitions.get(name) for name in names} if graders is not None else None,
                "also": list(also),
            }
        )
        file = state / f"attempts-{start:06d}-{key[:16]}.jsonl"
        if file.exists():
            by_id = {task.id: task for task in some}
            found = [attempt_from_row(row, by_id) for row in read_jsonl(file)]
            groups += [found[at : at + sampling.n] for at in range(0, len(found), sampling.n)]
            if progress is not None:
                progress(len(some))
        else:
            asked = _ask(engine, some, sampling, graders, also, seeds[part], switches[part], progress)
            write_jsonl(file, (attempt.to_row(tokens=True) for group in asked for attempt in group))
            groups += asked
    return groups


def _ask(
    engine: Engine,
    tasks: Sequence[Task],
    sampling: Sampling,
    graders: GraderSet | None,
    also: Sequence[str],
    seeds: Sequence[int],
    thinking: Sequence[bool],
    progress: Callable[[int], None] | None,
) -> list[list[Attempt]]:
    """Attempts at all tasks at once."""
    with Grading(graders, also) if graders is not None else nullcontext() as grading:
        if isinstance(engine, OpenAIEngine) and engine.renders:
            groups = _ask_server(engine, tasks, sampling, seeds, thinking, progress)
        else:
            names = {*also, *(task.grader for task in tasks)}
            early = grading if graders is not None and graders.uses_sandbox(names) else None
            groups = _ask_engine(engine, tasks, sampling, seeds, thinking, progress, early)
        if grading is None:
            return groups
        grades, components = grading.done([attempt.as_sample() for group in groups for attempt in group])
    places = iter(range(len(grades)))
    return [
        [
            replace(item, grade=grades[place], components={name: row[place] for name, row in components.items()})
            for item, place in zip(group, places, strict=False)
        ]
        for group in groups
    ]


def _ask_engine(
    engine: Engine,
    tasks: Sequence[Task],
    sampling: Sampling,
    seeds: Sequence[int],
    thinking: Sequence[bool],
    progress: Callable[[int], None] | None,
    early: Grading | None,
) -> list[list[Attempt]]:
    """Attempts without grades; `early` gets each as soon as it is finished."""
    tokenizer = engine.tokenizer
    prompts = [render_prompt(tokenizer, task, think) for task, think in zip(tasks, thinking, strict=True)]
    left = [sampling.n] * len(tasks)

    def attempt(number: int, sample: int, done: Completion) -> Attempt:
        text = answer_text(tokenizer, done, prompts[number])
        return Attempt(tasks[number], sample, prompts[number], done, text, thinking=thinking[number])

    def finished(number: int, done: Completion) -> None:
        if early is not None:
            early.add(number * sampling.n + done.number, attempt(number, done.number, done).as_sample())
        left[number] -= 1
        if progress is not None and not left[number]:
            progress(1)

    groups = engine.generate(prompts, sampling, seeds, finished)
    return [[attempt(number, *item) for item in enumerate(group)] for number, group in enumerate(groups)]


def _ask_server(
    engine: OpenAIEngine,
    tasks: Sequence[Task],
    sampling: Sampling,
    seeds: Sequence[int],
    thinking: Sequence[bool],
    progress: Callable[[int], None] | None,
) -> list[list[Attempt]]:
    """Attempts without grades from a server that renders, stops and decodes itself."""
    if not all(thinking):
        raise UserError(f"{engine.url} renders prompts itself, with thinking as it likes", "leave thinking on")
    replied = None if progress is None else lambda number, replies: progress(1)
    groups = engine.chat([task.messages for task in tasks], sampling, seeds, replied)
    return [
        [
            Attempt(task, number, (), reply.completion(number, engine.version), reply.text)
            for number, reply in enumerate(group)
        ]
        for task, group in zip(tasks, groups, strict=True)
    ]


def render_prompt(tokenizer: Tokenizer, task: Task, thinking: bool = True) -> tuple[int, ...]:
    """Ids of a task's conversation up to where the assistant writes; without `thinking` that part is closed.

    Raises `UserError` when the template has no such switch.
    """
    tools: dict[str, Any] = {"tools": task.tools} if task.tools else {}
    prompt = tokenizer.render(task.messages, add_generation_prompt=True, **tools)
    if thinking:
        return tuple(prompt)
    closed = tokenizer.render(task.messages, add_generation_prompt=True, enable_thinking=False, **tools)
    if list(closed) == list(prompt):
        raise UserError(
            "The checkpoint's chat template renders the same prompt with enable_thinking and without",
            "leave thinking on, or use a checkpoint whose template can switch it off",
        )
    return tuple(closed)


def answer_text(tokenizer: Tokenizer, completion: Completion, prompt: Sequence[int] = ()) -> str:
    """What the assistant wrote up to the stop, after what `prompt` wrote of its thinking part (`chat.thinking`)."""
    return tokenizer.answer_text(completion.token_ids, prompt, completion.stop_text)


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything with a stable text form."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
