"""From samples to what the loss sees: the tokens the policy sampled, each with advantage and log-probs.

    examples = build_examples(groups, config)
    scores = score_examples(model, examples, temperature)

Prompts, tool results, tokens that the engine forced and, where asked, whole samples that were cut off have weight 0:
they are read, never trained on, and enter no normalizer, entropy or KL. Not covered: the loss (see `rl.losses`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from loopline.base.errors import UserError
from loopline.inference.completion import Completion
from loopline.model.language_model import LanguageModel
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.group import Group, forced_tokens
from loopline.training.batch import Batch, Example, assign_rows, build_batch
from loopline.training.objectives import score_tokens


def example_of(
    tokens: Sequence[int],
    chosen: Sequence[bool],
    logprobs: Sequence[float],
    advantage: float,
    config: PolicyGradientConfig,
) -> Example | None:
    """One sequence for the loss; None when the policy sampled none of its tokens.

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
        example = completion_example(group.prompt, completion, advantage, config)
        if example is not None:
            found.append((number, example))
    return found


def completion_example(
    prompt: Sequence[int], completion: Completion, advantage: float, config: PolicyGradientConfig
) -> Example | None:
    """One answer for the loss; None when the policy sampled none of its tokens.

    Where top-k or top-p left tokens out, the log-probs are those among the tokens that were left, and the example says
    which. Raises `UserError` for an answer whose sampler did not say.
    """
    silent = len(prompt)
    logprobs: Sequence[float] = completion.logprobs
    if completion.kept_logmass:
        if not completion.kept_sets:
            raise UserError(
                "An answer was sampled with top-k or top-p, but which words these left was not recorded",
                "sample with keep_sets on, or without top-k and top-p",
            )
        logprobs = [value - mass for value, mass in zip(logprobs, completion.kept_logmass, strict=True)]
    example = example_of(
        [*prompt, *completion.token_ids],
        [False] * silent + [not forced for forced in forced_tokens(completion)],
        [0.0] * silent + list(logprobs),
        advantage,
        config,
    )
    if example is None or not completion.kept_sets:
        return example
    return replace(example, kept=[b""] * silent + list(completion.kept_sets))


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


def score_examples(
    model: LanguageModel, examples: Sequence[Example], temperature: float, row_length: int = 256, rows: int = 32
) -> list[list[float]]:
    """Log-probs at `temperature` of the ids of each example, 0.0 where their weight is 0."""

    def score(batch: Batch) -> tuple[Tensor, Tensor]:
        found = score_tokens(model, batch, temperature)
        return found.logprobs_M, found.index_M

    return map_examples(model, examples, score, row_length, rows)


@torch.no_grad()
def map_examples(
    model: nn.Module,
    examples: Sequence[Example],
    score: Callable[[Batch], tuple[Tensor, Tensor]],
    row_length: int = 256,
    rows: int = 32,
) -> list[list[float]]:
    """What `score` gives for the ids of each example, packed `rows` rows at a time; 0.0 where it gives nothing.

    `score` returns values (M,) and their places in the flattened (B, T) of the batch. No gradient is kept, and the
    model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    row_length = max([row_length, *(len(example.tokens) for example in examples)])
    lines = assign_rows([len(example.tokens) for example in examples], row_length)
    scores: list[list[float]] = [[] for _ in examples]
    for start in range(0, len(lines), rows):
        part = lines[start : start + rows]
        batch = build_batch([[examples[number] for number in line] for line in part]).to(device)
        values, index = score(batch)
        flat = torch.zeros(batch.tokens_BT.numel(), device=device)
        flat[index] = values.float()
        table = flat.view(batch.tokens_BT.shape).cpu()
        for found, line in zip(table, part, strict=True):
            at = 0
            for number in line:
                end = at + len(examples[number].tokens)
                scores[number] = found[at:end].tolist()
                at = end
    model.train(was_training)
    return scores


def with_extra(example: Example, **extras: Sequence[float]) -> Example:
    """The example with further numbers per token."""
    return replace(example, extras={**example.extras, **extras})
