"""From samples to what the loss sees: the tokens the policy chose, each with advantage and log-probs.

    examples = build_examples(groups, config)
    scores = score_examples(model, examples, temperature)

Prompts, tool results, tokens that the engine forced and, where asked, whole samples that were cut off have weight 0:
they are read, never learnt, and enter no normalizer, entropy or KL. Not covered: the loss (see `rl.losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from throughline.harness.trajectory import Trajectory, View
from throughline.model.decoder import Decoder
from throughline.rl.config import PolicyGradientConfig
from throughline.rl.group import Group, forced_tokens
from throughline.training.batch import Example, assign_rows, build_batch
from throughline.training.objectives import score_tokens


def example_of(
    tokens: Sequence[int],
    chosen: Sequence[bool],
    logprobs: Sequence[float],
    advantage: float,
    config: PolicyGradientConfig,
) -> Example | None:
    """One sequence for the loss; None when the policy chose none of its tokens.

    `chosen` marks the tokens that the policy sampled, `logprobs` theirs (any number elsewhere). Weight and normalizer
    make the sum of all losses over the sum of all normalizers the mean that `config.normalizer` names.
    """
    count = sum(chosen)
    if not count:
        return None
    weight, normalizer = {
        "token": (1.0, float(count)),
        "sequence": (1.0 / count, 1.0),
        "constant": (1.0, float(config.max_new_tokens)),
    }[config.normalizer]
    return Example(
        tokens=list(tokens),
        weights=[weight if mark else 0.0 for mark in chosen],
        extras={
            "advantages": [advantage if mark else 0.0 for mark in chosen],
            "old_logprobs": [value if mark else 0.0 for mark, value in zip(chosen, logprobs, strict=True)],
        },
        scalars={"normalizer": normalizer},
    )


def group_examples(group: Group, config: PolicyGradientConfig) -> list[tuple[int, Example]]:
    """(sample number, example) of every sample of a group that the loss may see."""
    found = []
    for number, (completion, advantage) in enumerate(zip(group.completions, group.advantages, strict=True)):
        if advantage is None or (config.mask_truncated and completion.finish == "length"):
            continue
        silent = len(group.prompt)
        example = example_of(
            [*group.prompt, *completion.token_ids],
            [False] * silent + [not forced for forced in forced_tokens(completion)],
            [0.0] * silent + list(completion.logprobs),
            advantage,
            config,
        )
        if example is not None:
            found.append((number, example))
    return found


def build_examples(groups: Sequence[Group], config: PolicyGradientConfig) -> list[Example]:
    """What the loss sees of `groups`.

    A dropped group leaves numerator and token count alike; a masked truncated sample likewise.
    """
    return [
        example
        for group in groups
        if group.has_signal or not config.drop_zero_signal
        for _, example in group_examples(group, config)
    ]


def trajectory_examples(trajectory: Trajectory, advantage: float, config: PolicyGradientConfig) -> list[Example]:
    """One example per path of a multi-turn attempt, each sampled token in exactly one of them.

    The tokens are those the engine saw and returned; nothing is tokenized again. With the normalizer "sequence" an
    attempt counts once per path.
    """
    if config.mask_truncated and trajectory.finish == "length":
        return []
    views: list[View] = trajectory.training_views()
    found = (example_of(view.token_ids, view.sampled, view.logprobs, advantage, config) for view in views)
    return [example for example in found if example is not None]


@torch.no_grad()
def score_examples(
    model: Decoder, examples: Sequence[Example], temperature: float, row_length: int = 256, rows_per_batch: int = 32
) -> list[list[float]]:
    """Log-probs at `temperature` of the ids of each example, 0.0 where their weight is 0."""
    if not examples:
        return []
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    row_length = max([row_length, *(len(example.tokens) for example in examples)])
    rows = assign_rows([len(example.tokens) for example in examples], row_length)
    scores: list[list[float]] = [[] for _ in examples]
    for start in range(0, len(rows), rows_per_batch):
        part = rows[start : start + rows_per_batch]
        batch = build_batch([[examples[number] for number in row] for row in part])
        batch = replace(
            batch,
            tokens_BT=batch.tokens_BT.to(device),
            positions_BT=None if batch.positions_BT is None else batch.positions_BT.to(device),
            sequences_BT=None if batch.sequences_BT is None else batch.sequences_BT.to(device),
            weights_BT=None if batch.weights_BT is None else batch.weights_BT.to(device),
        )
        found = score_tokens(model, batch, temperature)
        flat = torch.zeros(batch.tokens_BT.numel(), device=device)
        flat[found.index_M] = found.logprobs_M.float()
        table = flat.view(batch.tokens_BT.shape).cpu()
        for line, row in zip(table, part, strict=True):
            at = 0
            for number in row:
                end = at + len(examples[number].tokens)
                scores[number] = line[at:end].tolist()
                at = end
    model.train(was_training)
    return scores


def with_extra(example: Example, **extras: Sequence[float]) -> Example:
    """The example with further numbers per token."""
    return replace(example, extras={**example.extras, **extras})
