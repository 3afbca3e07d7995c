"""What comes of asking for the ids that continue a conversation after a sampled answer.

    match tokenizer.continuation(messages, [{"role": "tool", "content": "17"}]):
        case Continuation(ids): prompt = [*prompt, *sampled, *ids]
        case Rewritten(prompt=prompt): ...        # the template shows history otherwise: a new prompt, a new branch

Sampled ids are never tokenized again: a policy is trained on what it sampled. Not covered: how each template gets there
(see the `continuation` methods of the tokenizers).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Continuation:
    """The conversation goes on where it is."""

    ids: list[int]
    """To append after the sampled answer; they end where the assistant writes."""


@dataclass(frozen=True)
class Rewritten:
    """With the new messages the template renders what came before otherwise than the policy saw or wrote it."""

    prompt: list[int]
    """The whole conversation as the template renders it now, up to where the assistant writes."""
    reason: str
    """What it renders otherwise, as a sentence."""
