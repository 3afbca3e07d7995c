"""Scores of whole conversations by a reward model.

    scores = score_conversations(directory, [[{"role": "user", ...}, {"role": "assistant", ...}], ...])

The score of a conversation is the head's output at its last token, as `transformers` computes it for
`...ForSequenceClassification`. Not covered: scores of single steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from loopline.base.errors import UserError
from loopline.chat.load import load_tokenizer
from loopline.model.checkpoint import load_model
from loopline.model.heads import ScoreModel
from loopline.training.batch import Example, build_batch

ROWS = 16
"""Conversations scored at once."""


@torch.inference_mode()
def score_conversations(
    path: Path,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    device: str = "cpu",
    advance: Callable[[int], None] = lambda n: None,
) -> list[float]:
    """One score per conversation. Raises `UserError` when `path` holds no reward model, or a conversation is too long
    for it.
    """
    model, tokenizer = load_model(path, device), load_tokenizer(path)
    if not isinstance(model, ScoreModel) or model.outputs != 1:
        raise UserError(f"{path} is no reward model", "train one with `loopline reward`")
    model.eval()
    rendered = [tokenizer.render(list(messages)) for messages in conversations]
    limit = model.config.max_position_embeddings
    longest = max(map(len, rendered), default=0)
    if longest > limit:
        raise UserError(
            f"A conversation of {longest} tokens is longer than the {limit} that the reward model in {path} takes",
            "lower max_new_tokens, or use a reward model for longer texts",
        )
    scores = [0.0] * len(rendered)
    # Neighbours of like length share a batch.
    order = sorted(range(len(rendered)), key=lambda number: (len(rendered[number]), number))
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        batch = build_batch([[Example(rendered[i], [1.0] * len(rendered[i]))] for i in chosen]).to(device)
        hidden = batch.hidden(model)
        last = torch.tensor([len(rendered[i]) - 1 for i in chosen], device=hidden.device)
        values = model.score(hidden[torch.arange(len(chosen), device=hidden.device), last])[:, 0]
        for number, value in zip(chosen, values.float().tolist(), strict=True):
            scores[number] = value
        advance(len(chosen))
    return scores
