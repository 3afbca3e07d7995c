"""A trajectory is a graph of turns that keeps, token by token, what the policy saw and what it wrote.

    trajectory = Trajectory(task_id="lookup-1")
    prompt = trajectory.add(None, prompt_ids, messages=[{"role": "user", "content": "..."}])
    turn = trajectory.add(prompt, completion.token_ids, logprobs=completion.logprobs, messages=[...])
    view = trajectory.view(turn)        # token ids, mask of sampled tokens, log-probs: training reads this

A node holds the tokens it added and nothing is ever tokenized again: the tokens of the path from the root to a node,
joined, are exactly the tokens that the engine received or returned. An edited context (an old tool result cut away) is
a second path from the same root, in which the copied turns count as read, not written, so that each sampled token is
trained on once. Ideas: branching traces of Chroma Context-1 (2026) and token-in, token-out rollouts of Kimi K2.5
(arXiv:2602.02276). Not covered: grading (see `environments.environment`), rewards and advantages (see `rl`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """Tokens added to the context in one go, and who wrote them."""

    index: int
    parent: int | None
    token_ids: tuple[int, ...]
    sampled: bool
    """True when the policy sampled these tokens here; False for prompts, tool results and anything forced or copied."""
    logprobs: tuple[float, ...]
    """Log-probability (nats) of each token under the policy that sampled it; empty when not sampled."""
    policy_version: int
    """Version of the weights that sampled the tokens; -1 when not sampled."""
    messages: tuple[Message, ...]
    """The turns as text, for people and for graders; never the source of tokens."""
    abandoned: bool = False
    """True for sampled tokens that the harness cut away, so that nothing after them exists."""


@dataclass(frozen=True)
class View:
    """One root-to-node path, joined: `token_ids`, `sampled`, `logprobs` and `versions` have one entry per token."""

    token_ids: list[int]
    sampled: list[bool]
    logprobs: list[float]
    """0.0 where not sampled."""
    versions: list[int]


@dataclass
class Trajectory:
    """All turns of one attempt at one task."""

    task_id: str
    nodes: list[Node] = field(default_factory=list)
    head: int = -1
    """The node that holds the final answer; -1 before the first turn."""
    flags: list[str] = field(default_factory=list)
    """What went wrong or was repaired, in order: `malformed_call`, `unknown_tool`, `repeated_call`, `turn_limit`..."""
    finish: str = ""
    """`stop` when the policy ended with an answer, `length` when cut off, `turns` at the turn limit."""
    answer: str = ""
    """Text of the final assistant turn, thinking included and the stop token left out."""
    turns: int = 0
    """Assistant turns sampled on the way to the answer."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Tool calls that ran: name, arguments, result, whether the policy or the harness asked."""

    def add(
        self,
        parent: int | None,
        token_ids: Sequence[int],
        *,
        messages: Sequence[Message] = (),
        logprobs: Sequence[float] | None = None,
        policy_version: int = -1,
        abandoned: bool = False,
    ) -> int:
        """Append a node and return its index. With `logprobs` the tokens count as sampled.

        Raises `ValueError` for an unknown parent or for log-probs that do not match the tokens one to one.
        """
        if parent is not None and not 0 <= parent < len(self.nodes):
            raise ValueError(f"node {parent} does not exist: the trajectory has {len(self.nodes)} nodes")
        if logprobs is not None and len(logprobs) != len(token_ids):
            raise ValueError(f"{len(token_ids)} sampled tokens came with {len(logprobs)} log-probs")
        self.nodes.append(
            Node(
                index=len(self.nodes),
                parent=parent,
                token_ids=tuple(token_ids),
                sampled=logprobs is not None,
                logprobs=tuple(logprobs or ()),
                policy_version=policy_version,
                messages=tuple(messages),
                abandoned=abandoned,
            )
        )
        return len(self.nodes) - 1

    def flag(self, name: str) -> None:
        """Record that something happened; a flag may occur several times."""
        self.flags.append(name)

    def path(self, index: int) -> list[Node]:
        """Nodes from the root to `index`."""
        nodes = []
        cursor: int | None = index
        while cursor is not None:
            nodes.append(self.nodes[cursor])
            cursor = self.nodes[cursor].parent
        return nodes[::-1]

    def view(self, index: int) -> View:
        """The tokens from the root to `index`, with mask and log-probs."""
        view = View([], [], [], [])
        for node in self.path(index):
            view.token_ids.extend(node.token_ids)
            view.sampled.extend([node.sampled] * len(node.token_ids))
            view.logprobs.extend(node.logprobs if node.sampled else [0.0] * len(node.token_ids))
            view.versions.extend([node.policy_version] * len(node.token_ids))
        return view

    def leaves(self) -> list[int]:
        """Ends of all paths that were not abandoned, in the order they were made."""
        parents = {node.parent for node in self.nodes if not node.abandoned}
        return [node.index for node in self.nodes if not node.abandoned and node.index not in parents]

    def training_views(self) -> list[View]:
        """One view per leaf, each sampled token marked in the first view that holds it and in no other.

        Every kept path gets the outcome's reward, as in Composer 2 (arXiv:2603.24477), and abandoned tokens get none.
        Paths without a newly sampled token are left out.
        """
        seen: set[int] = set()
        views = []
        for leaf in self.leaves():
            view = View([], [], [], [])
            for node in self.path(leaf):
                counts = node.sampled and node.index not in seen
                size = len(node.token_ids)
                view.token_ids.extend(node.token_ids)
                view.sampled.extend([counts] * size)
                view.logprobs.extend(node.logprobs if counts else [0.0] * size)
                view.versions.extend([node.policy_version if counts else -1] * size)
                if counts:
                    seen.add(node.index)
            if any(view.sampled):
                views.append(view)
        return views

    def messages(self) -> list[Message]:
        """The turns on the path to the answer, as text."""
        return [message for node in self.path(self.head) for message in node.messages] if self.head >= 0 else []

    @property
    def tokens(self) -> int:
        """Tokens processed: each node once, since an engine reuses what a shared prefix cost."""
        return sum(len(node.token_ids) for node in self.nodes)

    @property
    def sampled_tokens(self) -> int:
        """Tokens the policy wrote, the abandoned ones included."""
        return sum(len(node.token_ids) for node in self.nodes if node.sampled)

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `from_json` builds the same trajectory."""
        return {
            "task_id": self.task_id,
            "head": self.head,
            "flags": list(self.flags),
            "finish": self.finish,
            "answer": self.answer,
            "turns": self.turns,
            "calls": list(self.calls),
            "nodes": [
                {
                    "parent": node.parent,
                    "token_ids": list(node.token_ids),
                    "sampled": node.sampled,
                    "logprobs": list(node.logprobs),
                    "policy_version": node.policy_version,
                    "messages": [dict(message) for message in node.messages],
                    "abandoned": node.abandoned,
                }
                for node in self.nodes
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trajectory:
        """The trajectory that `to_json` wrote."""
        trajectory = cls(
            task_id=value["task_id"],
            flags=list(value["flags"]),
            finish=value["finish"],
            answer=value["answer"],
            turns=value["turns"],
            calls=list(value["calls"]),
        )
        for node in value["nodes"]:
            trajectory.add(
                node["parent"],
                node["token_ids"],
                messages=node["messages"],
                logprobs=node["logprobs"] if node["sampled"] else None,
                policy_version=node["policy_version"],
                abandoned=node["abandoned"],
            )
        trajectory.head = value["head"]
        return trajectory
