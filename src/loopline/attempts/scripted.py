"""An engine that says what a script says: oracles for audits, and tests of everything around a policy.

    engine = ScriptedEngine(tokenizer, lambda prompt: "42")
    engine = ScriptedEngine.oracle(tokenizer, tasks)       # plays each task's recorded solution with tools

It honours the engine contract (token ids with `<|end|>`, a log-prob for each, the length limit), so nothing around it
can tell the difference. Not covered: sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from loopline.chat.tokenizer import ASSISTANT, END, Tokenizer
from loopline.inference.engine import Completion, Finished, Sampling
from loopline.tasks.task import Task

LOGPROB = -0.5


class ScriptedEngine:
    """Writes `script(prompt ids)`, closed by `<|end|>`."""

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
        turns = {
            tuple(tokenizer.render(task.messages)): [m["content"] for m in response if m["role"] == "assistant"]
            for task in tasks
            if (response := tool_response(task)) is not None
        }

        def script(prompt: Sequence[int]) -> str:
            # The recorded prompt ends where the first assistant mark stands.
            at = list(prompt).index(ASSISTANT)
            said = list(prompt).count(ASSISTANT) - 1
            recorded = turns.get(tuple(prompt[:at]), [])
            return str(recorded[said]) if said < len(recorded) else ""

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
        ids = [*self.tokenizer.encode(self.script(prompt)), END][: sampling.max_new_tokens]
        return Completion(ids, [LOGPROB] * len(ids), "stop" if ids[-1] == END else "length", self.version)


def tool_response(task: Task) -> Sequence[Mapping[str, str]] | None:
    """The messages of the task's first recorded response that uses tools, or None."""
    return next((r["messages"] for r in task.responses if any(m["role"] == "tool" for m in r["messages"])), None)
