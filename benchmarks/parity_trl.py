"""Losses and gradients of every objective against TRL's, on the same weights, batch and settings.

    pip install -e .[bench]
    python benchmarks/parity_trl.py                  # two architectures, three seeds each, some 3 minutes
    python benchmarks/parity_trl.py --quick          # one of each, under 50 s

TRL's side is TRL's own code: its trainers are built on a saved checkpoint, its collators or its scoring of rollouts
prepare the batch, and `compute_loss` is called. Only sampling is replaced, by fixed completions, since both sides need
the same. Our side packs the same sequences into rows, scores them itself and computes its own advantages, old and
reference log-probs.

A row agrees when the loss differs by at most 1e-5 max(1, |loss|) and no gradient by more than 1e-5 max(1, largest
gradient); the result also counts the rows that stay below 1e-5 without that scaling. Rows that cannot agree say why,
with the equation. Both sides compute in float32, so answers are short and the policies near each other. With answers of
24 tokens and twice the distance SPPO, whose loss is a square, differs by up to 8e-5 and DiscoPOP's gradient by 2e-5;
against float64 that is rounding of both sides.

Writes `results/parity_trl.json`; exits with 1 when a row that should agree does not. `--quick` takes one seed and one
architecture. Not covered: speed (see the other benchmarks here).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common

import loopline  # noqa: F401  # isort: skip  # Sets how torch's threads wait, before torch is loaded.
import torch
from torch import Tensor

from loopline.corpus.tokenizer import save as save_tokenizer
from loopline.corpus.tokenizer import train as train_tokenizer
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.model.heads import ScoreModel
from loopline.model.layout import to_huggingface
from loopline.rl.advantage import batch_advantages
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.examples import example_of, score_examples
from loopline.rl.kl_reward import charge
from loopline.rl.objective import GRPO
from loopline.training.batch import Batch, Example, build_batch
from loopline.training.loop import accumulate
from loopline.training.objectives import CPO, DPO, KTO, ORPO, BradleyTerry, NextToken, Objective, SimPO

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
TOLERANCE = 1e-5
PAD, END = 0, 1
PROMPTS, GROUP = 4, 4
LONGEST = 14

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"qk_norm": True, "tie_word_embeddings": True},
    "llama": {"qk_norm": False, "tie_word_embeddings": False},
}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    objective: str
    settings: str
    loss_difference: float
    """|ours - TRL's|, as it is."""
    gradient_difference: float
    """Largest |ours - TRL's| over all parameters, relative to the largest gradient where that is above 1."""
    loss: float
    """TRL's."""
    agrees: bool
    agrees_absolutely: bool
    """Whether no difference, of loss or any gradient, is above the tolerance whatever their size."""
    explanation: str = ""
    """Why it cannot agree, for rows where TRL computes something else."""


@dataclass(frozen=True)
class World:
    """Checkpoints and token sequences that both sides use."""

    folder: Path
    family: str
    seed: int
    old: Path
    """The policy that sampled, and the reference where TRL takes its starting weights for it."""
    new: Path
    """The policy whose loss is computed."""
    near: Path
    """A policy close to the old one, for ratios of whole samples."""
    scores: Path
    """A reward model."""
    prompts: list[list[int]]
    answers: list[list[list[int]]]
    """GROUP answers to each prompt, of unequal lengths; the last is cut off."""
    rewards: list[list[float]]

    @property
    def output(self) -> str:
        return str(self.folder / "trainer")


def make_world(folder: Path, family: str, seed: int) -> World:
    """Random tiny checkpoints and sequences."""
    generator = torch.Generator().manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        " ".join(letters[n % 26] + letters[n * k % 25] + letters[n * 7 % 24] for k in range(9)) for n in range(400)
    ]
    tokenizer = train_tokenizer(words, 320)
    save_tokenizer(tokenizer, folder / "tokenizer")
    config = ModelConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        **FAMILIES[family],
    )
    model = Decoder(config).initialize(generator)
    with torch.no_grad():
        # Wide enough that distributions are far from uniform and ratios far from 1.
        model.embedding.weight.mul_(8)
    save_checkpoint(model, folder / "tokenizer", folder / "old")
    for name, size in (("near", 0.003), ("new", 0.01)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        save_checkpoint(model, folder / "tokenizer", folder / name)
    head = torch.randn(1, 64, generator=generator)
    save_checkpoint(ScoreModel(load_model(folder / "new"), 1, head), folder / "tokenizer", folder / "scores")

    def sequence(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(10, 320, (length,), generator=generator).tolist()

    prompts = [sequence(2, 9) for _ in range(PROMPTS)]
    answers = [[[*sequence(1, LONGEST - 1), END] for _ in range(GROUP - 1)] for _ in prompts]
    for group in answers:
        group.append(torch.randint(10, 320, (LONGEST,), generator=generator).tolist())
    rewards = torch.rand(PROMPTS, GROUP, generator=generator).tolist()
    paths = [folder / name for name in ("old", "new", "near", "scores")]
    return World(folder, family, seed, *paths, prompts, answers, rewards)


# Our side


def example(prompt: Sequence[int], answer: Sequence[int], **scalars: float) -> Example:
    return Example([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer), scalars=scalars)


def reference_sums(path: Path, examples: Sequence[Example]) -> list[float]:
    """Summed log-prob of each example's weighted ids under a checkpoint."""
    return [sum(row) for row in score_examples(load_model(path), examples, 1.0)]


def with_reference(path: Path, examples: Sequence[Example]) -> list[Example]:
    sums = reference_sums(path, examples)
    return [replace(e, scalars={**e.scalars, "reference": s}) for e, s in zip(examples, sums, strict=True)]


def ours(path: Path, objective: Objective, examples: Sequence[Example]) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and gradients under TRL's names, from packed rows."""
    model: Any = load_model(path)
    # Two rows at a time, so that every comparison also crosses a split; KTO estimates its KL from the whole batch.
    _, metrics = accumulate(model, objective, pack_pairs(examples, len(examples) if isinstance(objective, KTO) else 2))
    decoder = model.decoder if isinstance(model, ScoreModel) else model
    prefix = "decoder." if isinstance(model, ScoreModel) else ""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    state = {name.removeprefix(prefix): value for name, value in gradients.items() if name.startswith(prefix)}
    state = {name: state.get(name, torch.zeros_like(p)) for name, p in decoder.named_parameters()}
    found = to_huggingface(state, decoder.config)
    if isinstance(model, ScoreModel):
        found["score.weight"] = gradients["score.weight"]
    return metrics["loss"], found


def pack_pairs(examples: Sequence[Example], per_batch: int) -> list[Batch]:
    """Batches of `per_batch` rows of two sequences each, in order."""
    rows = [examples[n : n + 2] for n in range(0, len(examples), 2)]
    return [build_batch(rows[n : n + per_batch]) for n in range(0, len(rows), per_batch)]


# TRL's side


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the trainers' notices and progress bars."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def arguments(kind: Any, world: World, **changes: Any) -> Any:
    """A trainer's arguments: float32 on the CPU, nothing logged or saved."""
    settings = {
        "output_dir": world.output,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": PROMPTS * GROUP,
        "disable_tqdm": True,
    }
    return kind(**settings, **changes)


def load_theirs(path: Path, kind: str = "AutoModelForCausalLM") -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(path, dtype=torch.float32)


def load_processor(world: World) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world.new)


def theirs(trainer: Any, inputs: dict[str, Any], path: Path | None = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a trainer's own `compute_loss`, with the weights in `path` if given."""
    model = trainer.model
    if path is not None:
        model.load_state_dict(load_theirs(path).state_dict())
    model.train()
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    with quiet():
        loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(
    objective: str,
    settings: str,
    mine: tuple[float, dict[str, Tensor]],
    other: tuple[float, dict[str, Tensor]],
    explanation: str = "",
) -> Row:
    """One row."""
    loss, gradients = other
    named = {name.removeprefix("module."): value for name, value in gradients.items()}
    missing = set(named) - set(mine[1])
    assert not missing, f"no gradient of ours for {sorted(missing)}"
    largest = max(float(value.abs().max()) for value in named.values())
    worst = max(float((mine[1][name] - value).abs().max()) for name, value in named.items())
    relative = worst / max(1.0, largest)
    difference = abs(mine[0] - loss)
    agrees = difference <= TOLERANCE * max(1.0, abs(loss)) and relative <= TOLERANCE
    absolutely = agrees and max(difference, worst) <= TOLERANCE
    return Row(objective, settings, difference, relative, loss, agrees, absolutely, explanation)


# Objectives


def sft_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    pairs = [(p, a) for p, group in zip(world.prompts, world.answers, strict=True) for a in group]
    examples = [example(p, a) for p, a in pairs]
    rows = [{"input_ids": [*p, *a], "labels": [-100] * len(p) + list(a)} for p, a in pairs]
    for name, loss_type, whole in [("answers only", "nll", False), ("every token", "nll", True), ("dft", "dft", False)]:
        with quiet():
            trainer = SFTTrainer(
                model=load_theirs(world.new),
                args=arguments(SFTConfig, world, loss_type=loss_type, max_length=None),
                train_dataset=Dataset.from_list([{"prompt": "word1", "completion": " of"}] * 2),
                processing_class=load_processor(world),
            )
        fed = [{"input_ids": row["input_ids"]} for row in rows] if whole else rows
        used = [Example(e.tokens, [1.0] * len(e.tokens)) for e in examples] if whole else examples
        inputs = dict(trainer.data_collator(fed))
        objective = NextToken(dynamic=loss_type == "dft")
        mine = ours(world.new, objective, used)
        yield compare("SFT", name, mine, theirs(trainer, inputs))


def pairs_of(world: World) -> list[tuple[list[int], list[int], list[int]]]:
    return [(p, group[0], group[1]) for p, group in zip(world.prompts, world.answers, strict=True)]


PAIRED = {
    "sigmoid": {},
    "sigmoid_norm": {"beta": 2.0},
    "hinge": {},
    "ipo": {"beta": 0.3},
    "robust": {"label_smoothing": 0.2},
    "exo_pair": {"label_smoothing": 0.1},
    "nca_pair": {},
    "bco_pair": {},
    "sppo_hard": {"beta": 1.0},
    "apo_zero": {},
    "apo_down": {},
    "discopop": {},
}


def dpo_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pairs = pairs_of(world)
    plain = [example(p, answer) for p, chosen, rejected in pairs for answer in (chosen, rejected)]
    examples = with_reference(world.old, plain)
    fed = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    for kind, changes in PAIRED.items():
        settings: dict[str, Any] = {"beta": 0.1, **changes}
        with quiet():
            trainer = DPOTrainer(
                model=load_theirs(world.new),
                ref_model=load_theirs(world.old),
                args=arguments(DPOConfig, world, loss_type=[kind], max_length=None, **settings),
                train_dataset=Dataset.from_list([{"prompt": "word1", "chosen": " of", "rejected": " text"}] * 2),
                processing_class=load_processor(world),
            )
        objective = DPO(settings["beta"], kind=kind, label_smoothing=settings.get("label_smoothing", 0.0))
        mine = ours(world.new, objective, examples)
        yield compare("DPO", kind, mine, theirs(trainer, dict(trainer.data_collator(fed))))
    # Chosen answers of one length, where the mean over tokens is the mean over answers.
    even = [(p, (c * 9)[:9], r) for p, c, r in pairs]
    plain = [example(p, answer) for p, chosen, rejected in even for answer in (chosen, rejected)]
    with quiet():
        trainer = DPOTrainer(
            model=load_theirs(world.new),
            ref_model=load_theirs(world.old),
            args=arguments(DPOConfig, world, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], max_length=None),
            train_dataset=Dataset.from_list([{"prompt": "word1", "chosen": " of", "rejected": " text"}] * 2),
            processing_class=load_processor(world),
        )
    mine = ours(world.new, DPO(0.1, sft_weight=0.2), with_reference(world.old, plain))
    fed = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in even]
    yield compare("DPO", "sigmoid and sft, equal lengths", mine, theirs(trainer, dict(trainer.data_collator(fed))))


def reward_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    pairs = pairs_of(world)
    margins = [0.0, 0.5, 1.0, 0.25]
    for name, centering, use_margin in [("pairs", None, False), ("margin", None, True), ("centred", 0.01, False)]:
        with quiet():
            trainer = RewardTrainer(
                model=load_theirs(world.scores, "AutoModelForSequenceClassification"),
                args=arguments(RewardConfig, world, center_rewards_coefficient=centering, max_length=None),
                train_dataset=Dataset.from_list([{"chosen": "word1 of", "rejected": "word1 text"}] * 2),
                processing_class=load_processor(world),
            )
        fed = [
            {"chosen_ids": [*p, *c], "rejected_ids": [*p, *r], **({"margin": m} if use_margin else {})}
            for (p, c, r), m in zip(pairs, margins, strict=True)
        ]
        examples = [
            example(p, answer, **({"margin": m} if use_margin else {}))
            for (p, c, r), m in zip(pairs, margins, strict=True)
            for answer in (c, r)
        ]
        mine = ours(world.scores, BradleyTerry(centering or 0.0), examples)
        yield compare("reward model", name, mine, theirs(trainer, dict(trainer.data_collator(fed))))


def kto_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    answers = [
        (p, group[n % 2], n % 2 == 0) for n, (p, group) in enumerate(zip(world.prompts, world.answers, strict=True))
    ]
    others = [answers[n - 1][1] for n in range(len(answers))]
    asked = [example(p, a, label=float(good)) for p, a, good in answers]
    mismatched = [example(p, a, label=-1.0) for (p, _, _), a in zip(answers, others, strict=True)]
    text = [{"prompt": f"word{n}", "completion": f" of text {n}", "label": bool(n % 2)} for n in range(8)]
    for kind, start in [("kto", world.old), ("kto", world.new), ("apo_zero_unpaired", world.old)]:
        # From either side, since the KL estimate is cut off at 0.
        trained, reference = (world.new, world.old) if start == world.old else (world.old, world.new)
        with quiet():
            trainer = KTOTrainer(
                model=load_theirs(trained),
                ref_model=load_theirs(reference),
                args=arguments(
                    KTOConfig,
                    world,
                    loss_type=kind,
                    beta=0.1,
                    desirable_weight=1.0,
                    undesirable_weight=1.3,
                    max_length=None,
                ),
                train_dataset=Dataset.from_list(text),
                processing_class=load_processor(world),
            )
        fed = [
            {"prompt_ids": p, "completion_ids": a, "KL_completion_ids": o, "label": good}
            for (p, a, good), o in zip(answers, others, strict=True)
        ]
        if kind != "kto":
            fed = [{k: v for k, v in row.items() if k != "KL_completion_ids"} for row in fed]
        examples = with_reference(reference, asked + mismatched)
        mine = ours(trained, KTO(0.1, 1.0, 1.3, kind), examples)
        name = kind if start == world.old else f"{kind}, policy and reference exchanged"
        yield compare("KTO", name, mine, theirs(trainer, dict(trainer.data_collator(fed))))


def unreferenced_inputs(pairs: Sequence[tuple[list[int], list[int], list[int]]], trainer: Any) -> dict[str, Any]:
    """The collated form of the trainers that take pairs without a reference."""
    rows = []
    for prompt, chosen, rejected in pairs:
        row: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            row[f"{side}_input_ids"] = [*prompt, *answer]
            row[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{side}_labels"] = [-100] * len(prompt) + list(answer)
        rows.append(row)
    return dict(trainer.data_collator(rows))


def unreferenced_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    text = [{"prompt": "word1", "chosen": " of", "rejected": " text"}] * 2
    pairs = pairs_of(world)
    # One-token prompts and chosen answers of one length: there the two definitions of the likelihood term meet.
    even = [([p[0]], (c * 9)[:9], r) for p, c, r in pairs]

    def built(kind: Any, config: Any, **settings: Any) -> Any:
        with quiet():
            return kind(
                model=load_theirs(world.new),
                args=arguments(config, world, max_length=128, **settings),
                train_dataset=Dataset.from_list(text),
                processing_class=load_processor(world),
            )

    def examples(used: Sequence[tuple[list[int], list[int], list[int]]]) -> list[Example]:
        return [example(p, answer) for p, c, r in used for answer in (c, r)]

    trainer = built(CPOTrainer, CPOConfig, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.5)
    mine = ours(world.new, SimPO(2.0, 0.5), examples(pairs))
    yield compare("SimPO", "cpo_alpha 0", mine, theirs(trainer, unreferenced_inputs(pairs, trainer)))
    trainer = built(CPOTrainer, CPOConfig, loss_type="sigmoid", cpo_alpha=0.0, beta=0.1)
    mine = ours(world.new, CPO(0.1, 0.0), examples(pairs))
    yield compare("CPO", "preference term", mine, theirs(trainer, unreferenced_inputs(pairs, trainer)))
    trainer = built(CPOTrainer, CPOConfig, loss_type="sigmoid", cpo_alpha=1.0, beta=0.1)
    mine = ours(world.new, CPO(0.1, 1.0), examples(even))
    yield compare("CPO", "chosen answers of one length", mine, theirs(trainer, unreferenced_inputs(even, trainer)))
    trainer = built(CPOTrainer, CPOConfig, loss_type="sigmoid", cpo_alpha=1.0, beta=0.1)
    mine = ours(world.new, CPO(0.1, 1.0), examples(pairs))
    yield compare(
        "CPO",
        "unequal lengths",
        mine,
        theirs(trainer, unreferenced_inputs(pairs, trainer)),
        "the likelihood term (arXiv:2401.08417, eq. 5, an expectation over answers) is each answer's mean here and the "
        "mean over all tokens of the micro-batch there, which depends on how a step is split",
    )
    trainer = built(ORPOTrainer, ORPOConfig, beta=0.1)
    mine = ours(world.new, ORPO(0.1), examples(even))
    yield compare("ORPO", "one-token prompts, equal lengths", mine, theirs(trainer, unreferenced_inputs(even, trainer)))
    trainer = built(ORPOTrainer, ORPOConfig, beta=0.1)
    mine = ours(world.new, ORPO(0.1), examples(pairs))
    yield compare(
        "ORPO",
        "prompts, unequal lengths",
        mine,
        theirs(trainer, unreferenced_inputs(pairs, trainer)),
        "the likelihood term (arXiv:2403.07691, eq. 2 and 6) is that of the chosen answer given the prompt, each "
        "answer's mean; there it also covers the prompt's tokens and is the mean over all tokens of the micro-batch",
    )


@dataclass(frozen=True)
class Case:
    """One GRPO comparison: TRL's settings and ours."""

    name: str
    trl: dict[str, Any]
    ours: dict[str, Any]
    importance: bool = False
    """With a sampler that differs from the trainer."""
    explanation: str = ""


GRPO_CASES = [
    Case("grpo", {"loss_type": "grpo"}, {"normalizer": "sequence"}),
    Case("dapo", {"loss_type": "dapo", "epsilon_high": 0.28}, {"clip_high": 0.28}),
    Case("bnpo, one batch", {"loss_type": "bnpo"}, {}),
    Case(
        "dr_grpo",
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"normalizer": "constant", "scale_rewards": "none"},
    ),
    Case("scale_rewards batch", {"loss_type": "dapo", "scale_rewards": "batch"}, {"scale_rewards": "batch"}),
    Case(
        "gspo",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-3, "epsilon_high": 4e-3},
        {"normalizer": "sequence", "ratio_level": "sequence", "clip_low": 3e-3, "clip_high": 4e-3},
    ),
    Case("cispo", {"loss_type": "cispo", "epsilon_high": 1.5}, {"surrogate": "cispo_cap", "clip_high": 1.5}),
    Case("sapo", {"loss_type": "sapo"}, {"surrogate": "soft_gate", "normalizer": "sequence"}),
    Case("two-sided clip", {"loss_type": "dapo", "delta": 1.5}, {"dual_clip": 1.5}),
    Case(
        "KL k3 times ratio",
        {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": True},
        {"kl_coefficient": 0.3, "kl_gradient": "ratio"},
    ),
    Case(
        "KL k3 as it stands",
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
        {"normalizer": "sequence", "kl_coefficient": 0.3, "kl_gradient": "estimator"},
    ),
    Case(
        "KL k3 times sequence ratio",
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True, "importance_sampling_level": "sequence"},
        {"normalizer": "sequence", "kl_coefficient": 0.3, "ratio_level": "sequence"},
    ),
    Case("mask_truncated", {"loss_type": "dapo", "mask_truncated_completions": True}, {"mask_truncated": True}),
    *(
        Case(
            f"importance {mode}",
            {
                "loss_type": "dapo",
                "vllm_importance_sampling_mode": mode,
                "vllm_importance_sampling_clip_max": cap,
                "vllm_importance_sampling_clip_min": floor,
                "beta": 0.1,
            },
            {
                "importance_correction": mode,
                "importance_cap": cap,
                "importance_floor": floor,
                "kl_coefficient": 0.1,
            },
            True,
        )
        for mode, cap, floor in [
            ("token_truncate", 1.2, 0.9),
            ("token_mask", 1.2, 0.9),
            ("sequence_truncate", 1.5, 0.6),
            ("sequence_mask", 1.5, 0.6),
        ]
    ),
]


def sampler_logprobs(world: World) -> list[list[list[float]]]:
    """What another engine than the trainer reported: the old policy's log-probs with noise on them."""
    generator = torch.Generator().manual_seed(world.seed + 1000)
    flat = [example(p, a) for p, group in zip(world.prompts, world.answers, strict=True) for a in group]
    scores = score_examples(load_model(world.old), flat, 1.0)
    tails = [torch.tensor(row)[torch.tensor(e.weights) > 0] for e, row in zip(flat, scores, strict=True)]
    noisy = [(tail + torch.randn(len(tail), generator=generator) * 0.15).tolist() for tail in tails]
    return [noisy[n : n + GROUP] for n in range(0, len(noisy), GROUP)]


def policy_examples(
    world: World, config: PolicyGradientConfig, advantages: list[list[float]], noisy: list[list[list[float]]]
) -> list[Example]:
    """Our rollout: the same completions, with log-probs that our own forward pass gives."""
    model, found = load_model(world.old), []
    for p, n in ((p, n) for p in range(PROMPTS) for n in range(GROUP)):
        prompt, answer = world.prompts[p], world.answers[p][n]
        if config.mask_truncated and answer[-1] != END:
            continue
        chosen = [False] * len(prompt) + [True] * len(answer)
        sampled = [0.0] * len(prompt) + list(noisy[p][n])
        made = example_of([*prompt, *answer], chosen, sampled, advantages[p][n], config)
        assert made is not None
        found.append(made)
    old = reference = score_examples(model, found, 1.0)
    if config.kl_coefficient:
        generator = torch.Generator().manual_seed(world.seed + 7)
        third = load_model(world.old)
        with torch.no_grad():
            for _, parameter in sorted(third.named_parameters()):
                parameter.mul_(1 + 0.05 * float(torch.randn((), generator=generator)))
        save_checkpoint(third, world.old, world.folder / "reference")
        reference = score_examples(load_model(world.folder / "reference"), found, 1.0)
    return [
        replace(
            e,
            extras={
                **e.extras,
                "sampler_logprobs": e.extras["old_logprobs"],
                "old_logprobs": o,
                **({"reference_logprobs": r} if config.kl_coefficient else {}),
            },
        )
        for e, o, r in zip(found, old, reference, strict=True)
    ]


def grpo_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    noisy = sampler_logprobs(world)
    flat = [(p, n) for p in range(PROMPTS) for n in range(GROUP)]
    text = [{"prompt": f"word{n}"} for n in range(PROMPTS)]

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [world.rewards[p][n] for p, n in flat]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [world.prompts[p] for p, _ in flat],
            "completion_ids": [world.answers[p][n] for p, n in flat],
            "logprobs": [noisy[p][n] for p, n in flat],
        }

    for case in GRPO_CASES:
        config = PolicyGradientConfig(group_size=GROUP, prompts_per_step=PROMPTS, max_new_tokens=LONGEST, **case.ours)
        graded: list[list[float | None]] = [list(row) for row in world.rewards]
        found = batch_advantages(graded, config.scale_rewards, baseline=config.baseline)
        advantages = [[0.0 if value is None else value for value in row] for row in found]
        examples = policy_examples(world, config, advantages, noisy)
        mine = ours(world.new, GRPO.from_config(config), examples)
        with quiet():
            trainer = GRPOTrainer(
                model=load_theirs(world.old),
                reward_funcs=reward,
                args=arguments(
                    GRPOConfig,
                    world,
                    num_generations=GROUP,
                    max_completion_length=LONGEST,
                    # More than one iteration: otherwise TRL takes the new log-probs for the old ones.
                    num_iterations=2,
                    steps_per_generation=1,
                    **case.trl,
                ),
                train_dataset=Dataset.from_list(text),
                processing_class=load_processor(world),
                rollout_func=rollout,
            )
            if trainer.ref_model is not None:
                trainer.ref_model.load_state_dict(load_theirs(world.folder / "reference").state_dict())
            trainer.model.train()
            if case.importance:
                # The correction belongs to its vLLM path; no weights are synced for a fixed rollout.
                trainer.use_vllm = True
                trainer.vllm_importance_sampling_correction = True
                trainer._last_loaded_step = trainer.state.global_step
            rows = [{"prompt": f"word{p}"} for p, _ in flat]
            inputs = trainer._generate_and_score_completions(rows)
            other = theirs(trainer, inputs, world.new)
        yield compare("GRPO", case.name, mine, other, case.explanation)


def rloo_rows(world: World) -> Iterator[Row]:
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    noisy = sampler_logprobs(world)
    flat = [(p, n) for p in range(PROMPTS) for n in range(GROUP)]
    for name, beta in [("leave-one-out", 0.0), ("KL in the reward", 0.05)]:
        config = PolicyGradientConfig(
            preset="rloo", group_size=GROUP, prompts_per_step=PROMPTS, max_new_tokens=LONGEST, kl_coefficient=beta
        )
        found = batch_advantages(world.rewards, config.scale_rewards, baseline=config.baseline)
        advantages = [[0.0 if value is None else value for value in row] for row in found]
        examples = policy_examples(world, config, advantages, noisy)
        if beta:
            charged = charge(world.rewards, dict(zip(flat, examples, strict=True)), config)
            examples = [charged[place] for place in flat]
        mine = ours(world.near, GRPO.from_config(config), examples)

        def reward(completions: list[str], **_: Any) -> list[float]:
            return [world.rewards[p][n] for p, n in flat]

        with quiet():
            trainer = RLOOTrainer(
                model=load_theirs(world.old),
                reward_funcs=reward,
                args=arguments(RLOOConfig, world, num_generations=GROUP, max_completion_length=LONGEST, beta=beta),
                train_dataset=Dataset.from_list([{"prompt": f"word{n}"} for n in range(PROMPTS)]),
                processing_class=load_processor(world),
            )
            if trainer.ref_model is not None:
                trainer.ref_model.load_state_dict(load_theirs(world.folder / "reference").state_dict())
            trainer.model.train()
            trainer._tokenize_prompts = lambda prompts: ([world.prompts[p] for p, _ in flat], None, {})
            trainer._generate_single_turn = lambda *_: [world.answers[p][n] for p, n in flat]
            inputs = trainer._generate_and_score_completions([{"prompt": f"word{p}"} for p, _ in flat])
            other = theirs(trainer, inputs, world.near)
        yield compare("RLOO", name, mine, other)


NOT_SHARED = {
    "DPO aot, aot_unpaired": "sort the margins of a micro-batch against each other, so a step cannot be split",
    "GRPO luspo, vespo": "not offered here",
    "KTO": "TRL estimates the KL per micro-batch and process; here a step may hand over one estimate",
}
"""Loss types without a row, and why."""

PARTS: list[Callable[[World], Iterator[Row]]] = [
    sft_rows,
    dpo_rows,
    reward_rows,
    kto_rows,
    unreferenced_rows,
    grpo_rows,
    rloo_rows,
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="parts whose name contains this; writes no result")


def main() -> int:
    options = common.parse(__doc__ or "", add=add)
    if importlib.util.find_spec("trl") is None:
        print(
            "This benchmark compares with TRL, which is not installed. Fix: see the commands at the top of this file."
        )
        return 0 if options.quick else 1
    torch.set_num_threads(1)
    for name in ("trl", "transformers", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    began = time.monotonic()
    worlds = [("qwen3", 0)] if options.quick else [(f, s) for f in FAMILIES for s in range(3)]
    runs: list[list[Row]] = []
    for family, seed in worlds:
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(Path(folder), family, seed)
            rows = []
            for part in PARTS:
                if options.only in part.__name__:
                    for row in part(world):
                        rows.append(row)
                        show(row, family, seed)
            runs.append(rows)
    table = [worst(list(column)) for column in zip(*runs, strict=True)]
    expected = [row for row in table if not row.explanation]
    good = sum(row.agrees for row in expected)
    absolutely = sum(row.agrees_absolutely for row in expected)
    print(f"{good} of {len(expected)} rows agree to {TOLERANCE:g}; {len(table) - len(expected)} differ by definition")
    print(f"{absolutely} of {len(expected)} without scaling the tolerance by the size of loss or gradient")
    for row in table:
        if row.explanation:
            print(f"  {row.objective}, {row.settings}: differs by {row.loss_difference:.2g}: {row.explanation}")
    headrooms = [TOLERANCE / max(scaled_difference(row) for row in rows if not row.explanation) for rows in runs]
    result = {
        **common.spread(headrooms),
        "ratio_is": "tolerance over the largest scaled difference of loss or gradient; one per architecture and seed",
        "tolerance": TOLERANCE,
        "agree": good,
        "agree_absolutely": absolutely,
        "of": len(expected),
        "n": len(worlds),
        "rows": [{**asdict(row), "tolerance": TOLERANCE} for row in table],
        "not_shared": NOT_SHARED,
        "settings": {"worlds": [list(w) for w in worlds], "prompts": PROMPTS, "group": GROUP, "dtype": "float32"},
        "versions": common.versions("trl", "transformers", "accelerate", "peft"),
        "seconds": round(time.monotonic() - began, 1),
    }
    if not options.only:
        common.finish("parity_trl", result, options)
    return 0 if good == len(expected) else 1


def scaled_difference(row: Row) -> float:
    """What the tolerance is compared with."""
    return max(row.loss_difference / max(1.0, abs(row.loss)), row.gradient_difference)


def worst(rows: Sequence[Row]) -> Row:
    """The row of several seeds: the largest differences, agreeing only if all do."""
    return replace(
        rows[0],
        loss_difference=max(row.loss_difference for row in rows),
        gradient_difference=max(row.gradient_difference for row in rows),
        agrees=all(row.agrees for row in rows),
        agrees_absolutely=all(row.agrees_absolutely for row in rows),
    )


def show(row: Row, family: str, seed: int) -> None:
    mark = "agrees" if row.agrees else "differs by definition" if row.explanation else "DIFFERS"
    print(
        f"{family} {seed}  {row.objective:13} {row.settings:38} loss {row.loss:9.5f}  "
        f"|d loss| {row.loss_difference:.1e}  |d gradient| {row.gradient_difference:.1e}  {mark}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
