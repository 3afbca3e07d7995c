"""The program around a policy: what it sees, when tools run, when an attempt ends.

    harness = Harness(HarnessConfig(bootstrap_search=True, top_k=2))
    trajectories = harness.run(engine, environment, tasks, Sampling(max_new_tokens=64, temperature=0))

All attempts advance together, one assistant turn at a time, so the engine always works on a batch. An attempt ends with
a turn that calls no tool (its answer), at the turn limit, when a turn is cut off, or when its context is full. Sampled
tokens, the stop token included, are in the trajectory as they were sampled; tool results are appended as tokens, and
no text is tokenized a second time. Where a chat template shows earlier turns otherwise once there are later ones, the
attempt goes on in a new branch, in which they count as read. The same program serves training, search and service, and
runs on any checkpoint: its form of tool calls and results is that of its chat template (package `chat`).
Not covered: sub-agents.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loopline.attempts.config import HarnessConfig
from loopline.chat.continuation import Continuation
from loopline.chat.forms.form import Call
from loopline.chat.message import AssistantMessage
from loopline.chat.repair import nearest_tool, repair_call
from loopline.chat.thinking import prompt_thinking, read_thinking, with_prompt
from loopline.chat.tokenizer import Tokenizer
from loopline.chat.tools import ToolResult, as_plain_text, error_result
from loopline.environments.arithmetic import wrong_step
from loopline.environments.environment import Environment, EpisodeState
from loopline.inference.engine import Completion, Engine, Sampling
from loopline.inference.trajectory import Trajectory
from loopline.tasks.task import Task

__all__ = ["Harness", "HarnessConfig", "final_answer"]

CUT = "..."
CORRECTIONS = 4


def final_answer(text: str) -> str:
    """What follows the thinking part, stripped; empty where there is none (`chat.thinking`)."""
    return (read_thinking(text).answer or "").strip()


@dataclass
class Episode:
    """One running attempt; several share a trajectory when the harness votes."""

    task: Task
    replicate: int
    attempt: int
    trajectory: Trajectory
    state: EpisodeState
    head: int
    turns: int = 0
    pieces: int = 0
    """Generations so far: turns, and continuations after a corrected step."""
    corrections: int = 0
    written: str = ""
    """Text of the current turn before its last generation."""
    opening: str = ""
    """What the prompt of the current turn wrote of its thinking part."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Schemas of the tools that the template offers."""
    tool_nodes: list[int] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    calls: list[dict[str, Any]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    finish: str = ""
    answer: str = ""

    @property
    def question(self) -> str:
        """The user's last words."""
        return next((str(m["content"]) for m in reversed(self.task.messages) if m["role"] == "user"), "")

    def end(self, finish: str, answer: str, flag: str | None = None) -> None:
        """Close the attempt."""
        self.finish, self.answer = finish, answer
        if flag:
            self.flags.append(flag)

    def seed(self, base: int) -> int:
        """The seed of the next generation: from what it is, never from its place in a batch."""
        name = f"{base}|{self.task.id}|{self.replicate}|{self.attempt}|{self.pieces}"
        return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=6).digest(), "big")


class Harness:
    """One harness, ready to run."""

    def __init__(self, config: HarnessConfig) -> None:
        self.config = config

    def run(
        self,
        engine: Engine,
        environment: Environment,
        tasks: Sequence[Task],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[Trajectory]:
        """Attempt every task; `sampling.n` trajectories per task, in the order of `tasks`.

        `sampling.max_new_tokens` bounds one generation. A task that occurs twice in `tasks` is sampled twice, with
        different seeds. `progress` is called after every turn with the number of attempts that ended in it (a task is
        `vote` attempts).
        """
        if self.config.vote > 1 and sampling.temperature == 0:
            sampling = replace(sampling, temperature=self.config.vote_temperature)
        one = replace(sampling, n=1)
        groups = self._start(engine.tokenizer, environment, tasks, sampling.n)
        running = [episode for group in groups for episode in group]
        while running:
            running = self._admit(running, progress)
            if not running:
                break
            prompts = [episode.trajectory.view(episode.head).token_ids for episode in running]
            for episode, prompt in zip(running, prompts, strict=True):
                if not episode.written:
                    episode.opening = prompt_thinking(engine.tokenizer, prompt)
            seeds = [episode.seed(sampling.seed) for episode in running]
            completions = engine.generate(prompts, one, seeds=seeds)
            for episode, (completion,) in zip(running, completions, strict=True):
                self._advance(engine.tokenizer, environment, episode, completion)
            ended = sum(1 for episode in running if episode.finish)
            if progress is not None:
                progress(ended)
            running = [episode for episode in running if not episode.finish]
        return [self._decide(group) for group in groups]

    def prompt(self, environment: Environment, task: Task, state: EpisodeState) -> list[dict[str, Any]]:
        """The messages an attempt starts from: what the harness adds, then the task's own."""
        return self._prompt(environment, task, state)[0]

    def _prompt(
        self, environment: Environment, task: Task, state: EpisodeState
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        parts = [self.config.system_prompt] if self.config.system_prompt else []
        calls = []
        if self.config.bootstrap_search:
            question = next((str(m["content"]) for m in reversed(task.messages) if m["role"] == "user"), "")
            found = self._find(environment, state, question)
            if found is not None:
                call, result = found
                calls.append(record(call.name, call.arguments, result, "harness"))
                if not result.empty:
                    parts.append(f"Notes: {result.text}")
        system = [{"role": "system", "content": "\n".join(parts)}] if parts else []
        return [*system, *(dict(message) for message in task.messages)], calls

    def _start(
        self, tokenizer: Tokenizer, environment: Environment, tasks: Sequence[Task], n: int
    ) -> list[list[Episode]]:
        groups = []
        seen: Counter[str] = Counter()
        for task in tasks:
            for _ in range(n):
                trajectory = Trajectory(task_id=task.id)
                group = []
                for attempt in range(self.config.vote):
                    state = environment.reset(task)
                    messages, calls = self._prompt(environment, task, state)
                    tools = (
                        [tool.schema() for tool in environment.tools.values()]
                        if self.config.offer_tools
                        else [*task.tools]
                    )
                    if attempt == 0:
                        ids = tokenizer.render(messages, add_generation_prompt=True, tools=tools or None)
                        trajectory.add(None, ids, messages=messages)
                    episode = Episode(task, seen[task.id], attempt, trajectory, state, head=0, calls=calls, tools=tools)
                    group.append(episode)
                seen[task.id] += 1
                groups.append(group)
        return groups

    def _admit(self, running: list[Episode], progress: Callable[[int], None] | None) -> list[Episode]:
        """The episodes whose context has tokens left; the others end here."""
        for episode in running:
            size = sum(len(node.token_ids) for node in episode.trajectory.path(episode.head))
            if size >= self.config.max_context_tokens:
                episode.end("length", episode.written, "context_limit")
        kept = [episode for episode in running if not episode.finish]
        if progress is not None and len(kept) < len(running):
            progress(len(running) - len(kept))
        return kept

    def _advance(
        self, tokenizer: Tokenizer, environment: Environment, episode: Episode, completion: Completion
    ) -> None:
        """Take one generation into the episode."""
        episode.pieces += 1
        text = tokenizer.answer_text(completion.token_ids)
        schemas = [tool.schema() for tool in environment.tools.values()]
        said = tokenizer.parse(with_prompt(episode.opening, episode.written + text), schemas)
        if not asks_tool(said) and self._correct(tokenizer, episode, completion, text):
            return
        text = with_prompt(episode.opening, episode.written + text)
        episode.written, episode.corrections = "", 0
        episode.turns += 1
        episode.head = episode.trajectory.add(
            episode.head,
            completion.token_ids,
            messages=[{"role": "assistant", "content": text}],
            logprobs=completion.logprobs,
            policy_version=completion.policy_version,
        )
        if completion.finish == "length":
            episode.end("length", text, "truncated")
        elif not asks_tool(said):
            episode.end("stop", text)
        elif episode.turns >= self.config.max_turns:
            episode.end("turns", "", "turn_limit")
        else:
            results = self._answer_calls(environment, episode, said, text)
            self._append_results(tokenizer, episode, results)
            self._prune(tokenizer, episode)

    def _correct(self, tokenizer: Tokenizer, episode: Episode, completion: Completion, text: str) -> bool:
        """Where a written step is wrong, keep the tokens before its value and force the right one; True when done."""
        if not self.config.auto_calculate or episode.corrections >= CORRECTIONS:
            return False
        wrong = wrong_step(episode.written + text, start=len(episode.written))
        if wrong is None:
            return False
        at, value = wrong[0] - len(episode.written), wrong[1]
        kept, before = 0, ""
        for count in range(len(completion.token_ids), 0, -1):
            before = tokenizer.decode(completion.token_ids[:count])
            if len(before) <= at and text.startswith(before):
                kept = count
                break
        before = before if kept else ""
        trajectory, version = episode.trajectory, completion.policy_version
        if kept:
            episode.head = trajectory.add(
                episode.head, completion.token_ids[:kept], logprobs=completion.logprobs[:kept], policy_version=version
            )
        trajectory.add(
            episode.head,
            completion.token_ids[kept:],
            logprobs=completion.logprobs[kept:],
            policy_version=version,
            abandoned=True,
        )
        episode.head = trajectory.add(episode.head, tokenizer.encode(text[len(before) : at] + value))
        episode.written += text[:at] + value
        episode.corrections += 1
        episode.flags.append("corrected_step")
        return True

    def _answer_calls(
        self, environment: Environment, episode: Episode, said: AssistantMessage, text: str
    ) -> list[ToolResult]:
        """Run the calls a turn makes, with the repairs this harness has."""
        malformed = any(problem.startswith("tool call") for problem in said.malformed)
        unread = error_result("the tool call could not be read")
        if malformed:
            episode.flags.append("malformed_call")
        if said.tool_calls:
            results = [self._answer_call(environment, episode, call) for call in said.tool_calls]
            return [*results, unread] if malformed else results
        call = repair_call(text, environment.tools) if self.config.repair_malformed else None
        if call is None:
            return [self._fallback(environment, episode, unread)]
        episode.flags.append("repaired_call")
        return [self._answer_call(environment, episode, call)]

    def _answer_call(self, environment: Environment, episode: Episode, call: Call) -> ToolResult:
        """Run one call."""
        if call.name not in environment.tools:
            episode.flags.append("unknown_tool")
            name = nearest_tool(call, environment.tools) if self.config.route_unknown_tool else None
            call = replace(call, name=name) if name else call
        if call.key in episode.asked:
            episode.flags.append("repeated_call")
            found = self._find_question(environment, episode) if self.config.loop_guard else None
            if found is not None:
                return found
        episode.asked.add(call.key)
        result = environment.call(episode.state, call.name, self._sized(environment, call))
        episode.calls.append(record(call.name, call.arguments, result, "policy"))
        if not result.ok:
            episode.flags.append("failed_call")
        if result.empty:
            episode.flags.append("empty_search")
        return self._fallback(environment, episode, result)

    def _fallback(self, environment: Environment, episode: Episode, result: ToolResult) -> ToolResult:
        """`result`, or what the user's own words find when it is empty or an error."""
        useful = result.ok and not result.empty
        if useful or not self.config.retry_empty_search:
            return result
        found = self._find_question(environment, episode)
        return result if found is None or found.empty else found

    def _find_question(self, environment: Environment, episode: Episode) -> ToolResult | None:
        """What the user's own words find, where the environment can look things up."""
        found = self._find(environment, episode.state, episode.question)
        if found is None:
            return None
        call, result = found
        episode.calls.append(record(call.name, call.arguments, result, "harness"))
        return result

    def _find(self, environment: Environment, state: EpisodeState, question: str) -> tuple[Call, ToolResult] | None:
        call = environment.finder(question)
        if call is None:
            return None
        return call, environment.call(state, call.name, self._sized(environment, call))

    def _sized(self, environment: Environment, call: Call) -> dict[str, Any]:
        """The call's arguments with this harness's sizes, where the tool takes them and the policy said nothing."""
        if call.name not in environment.tools:
            return call.arguments
        known = environment.tools[call.name].parameters.get("properties", {})
        sizes = {"k": self.config.top_k, "floor": self.config.score_floor}
        return {**{name: value for name, value in sizes.items() if name in known}, **call.arguments}

    def _append_results(self, tokenizer: Tokenizer, episode: Episode, results: Sequence[ToolResult]) -> None:
        messages = [{"role": "tool", "content": as_plain_text(result.text)} for result in results]
        episode.head = add_results(tokenizer, episode.trajectory, episode.head, messages, episode.tools)
        if episode.trajectory.nodes[episode.head].parent is None:
            episode.flags.append("rewritten_history")
            episode.tool_nodes = []
        else:
            episode.tool_nodes.append(episode.head)

    def _prune(self, tokenizer: Tokenizer, episode: Episode) -> None:
        """Cut old tool results: a new path from the prompt, in which earlier turns count as read.

        Results in a rewritten prompt are part of it and stay.
        """
        keep = self.config.keep_tool_results
        old = set(episode.tool_nodes[:-keep]) if keep else set()
        trajectory = episode.trajectory
        if not any(trajectory.nodes[number].messages[-1]["content"] != CUT for number in old):
            return
        first, *rest = trajectory.path(episode.head)
        head, results = first.index, []
        for node in rest:
            if node.index in episode.tool_nodes:
                told = [message for message in node.messages if message["role"] == "tool"]
                shown = [{**message, "content": CUT} if node.index in old else message for message in told]
                head = add_results(tokenizer, trajectory, head, shown, episode.tools)
                results.append(head)
            else:
                head = trajectory.add(head, node.token_ids, messages=node.messages)
        episode.head, episode.tool_nodes = head, results

    def _decide(self, group: list[Episode]) -> Trajectory:
        """The trajectory with the winning attempt's answer."""
        finished = [episode for episode in group if episode.finish == "stop"] or group
        votes = Counter(final_answer(episode.answer) for episode in finished)
        # Counter keeps first-seen order and `max` the first of equals, so a tie goes to the earliest attempt.
        winner = max(votes, key=lambda answer: votes[answer])
        chosen = next(episode for episode in finished if final_answer(episode.answer) == winner)
        trajectory = chosen.trajectory
        trajectory.head, trajectory.finish, trajectory.answer = chosen.head, chosen.finish, chosen.answer
        trajectory.turns, trajectory.calls, trajectory.flags = chosen.turns, chosen.calls, list(chosen.flags)
        if len(votes) > 1:
            trajectory.flag("split_vote")
        return trajectory


def record(name: str, arguments: Mapping[str, Any], result: ToolResult, caller: str) -> dict[str, Any]:
    """One row of `Trajectory.calls`."""
    return {"name": name, "arguments": dict(arguments), "result": result.text, "ok": result.ok, "caller": caller}


def asks_tool(said: AssistantMessage) -> bool:
    """Whether a turn means to call a tool, however badly."""
    return bool(said.tool_calls) or any(problem.startswith("tool call") for problem in said.malformed)


def add_results(
    tokenizer: Tokenizer,
    trajectory: Trajectory,
    parent: int,
    results: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Append tool turns and what comes before the policy writes again; returns the node.

    Where the template now renders the messages before it differently, the node is the root of a new branch.
    """
    so_far = [message for node in trajectory.path(parent) for message in node.messages]
    last = trajectory.nodes[parent].token_ids
    closed = bool(last) and last[-1] in tokenizer.stop_ids
    found = tokenizer.continuation(so_far, results, tools=tools or None, closed=closed)
    if isinstance(found, Continuation):
        return trajectory.add(parent, found.ids, messages=results)
    return trajectory.add(None, found.prompt, messages=[*so_far, *results])
