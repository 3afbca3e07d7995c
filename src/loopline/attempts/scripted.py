"""An engine that says what a script says: oracles for audits, and tests of everything around a policy.

    engine = ScriptedEngine(tokenizer, lambda prompt: "42")
    engine = ScriptedEngine.oracle(tokenizer, tasks)       # plays each task's recorded solution with tools

It honours the engine contract (token ids with the stop token, a log-prob for each, the length limit), so nothing around
it sees a difference. Not covered: sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loopline.chat.parser import OWN, recorded
from loopline.chat.thinking import THINK, THINK_END
from loopline.chat.tokenizer import Tokenizer
from loopline.inference.engine import Completion, Finished, Sampling
from loopline.tasks.task import Task

LOGPROB = -0.5


class ScriptedEngine:
    """Writes `script(prompt ids)`, closed by the stop token."""

    def __init__(self, tokenizer: Tokenizer, script: Callable[[Sequence[int]], str], version: int = 0) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.version = version
        self.prompts: list[list[int]] = []
        """Every prompt seen, in order."""

    @classmethod
    def oracle(cls, tokenizer: Tokenizer, tasks: Sequence[Task]) -> ScriptedEngine:
        """The policy that does in each turn what the task's recorded solution with tools did. Knows these tasks
        only."""
        turns: dict[tuple[int, ...], tuple[list[int], list[str]]] = {}
        for task in tasks:
            if (response := tool_response(task)) is not None:
                head = tokenizer.render(task.messages, add_generation_prompt=True)
                # Without a generation prompt, turns are counted by their stop tokens.
                header = head[len(tokenizer.render(task.messages)) :] or [tokenizer.end_id]
                said = [as_written(tokenizer, message) for message in response if message["role"] == "assistant"]
                turns[tuple(head)] = (header, said)
        sizes = sorted({len(head) for head in turns}, reverse=True)

        def script(prompt: Sequence[int]) -> str:
            ids = list(prompt)
            for size in sizes:
                if tuple(ids[:size]) in turns:
                    header, said = turns[tuple(ids[:size])]
                    turn = sum(ids[at : at + len(header)] == header for at in range(size, len(ids)))
                    return said[turn] if turn < len(said) else ""
            return ""

        return cls(tokenizer, script)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        groups = []
        for number, prompt in enumerate(prompts):
            done = self._complete(prompt, sampling)
            groups.append([replace(done, number=sample) for sample in range(sampling.n)])
            if finished is not None:
                for completion in groups[-1]:
                    finished(number, completion)
        return groups

    def fingerprint(self) -> str:
        """Scripts have no digest: the name of this one's version."""
        return f"script {self.version}"

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
        completion = self._complete(prompt, sampling)
        yield from zip(completion.token_ids, completion.logprobs, strict=True)

    def _complete(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        self.prompts.append(list(prompt))
        ids = [*self.tokenizer.encode(self.script(prompt)), self.tokenizer.end_id][: sampling.max_new_tokens]
        return Completion(
            ids, [LOGPROB] * len(ids), "stop" if ids[-1] == self.tokenizer.end_id else "length", self.version
        )


def tool_response(task: Task) -> Sequence[Mapping[str, str]] | None:
    """The messages of the task's first recorded response that uses tools, or None."""
    return next((r["messages"] for r in task.responses if any(m["role"] == "tool" for m in r["messages"])), None)


def as_written(tokenizer: Tokenizer, message: Mapping[str, Any]) -> str:
    """A recorded assistant turn as the tokenizer's checkpoint writes it."""
    said = recorded(message)
    if not said.tool_calls or (isinstance(tokenizer.form, type(OWN)) and not message.get("tool_calls")):
        return str(message["content"])
    head = f"{THINK}{said.reasoning}{THINK_END}" if said.reasoning else ""
    return head + said.content + tokenizer.form.write(said.tool_calls)
