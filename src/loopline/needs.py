"""What the nodes of a line will need, before any of them runs: peak memory, disk and time.

    for need in needs(recipe): need.node, need.peak_bytes, need.disk_bytes, need.seconds
    refuse_what_cannot_fit(recipe)

Estimates from the sizes of each node's model and of what it does with it (`plan.estimate` says how far to trust them);
nodes whose model is not known yet, or that train none, have none. Not covered: the corpus stages, and kinds of other
packages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.line import Node
from loopline.model.config import ModelConfig
from loopline.plan.estimate import Work, estimate
from loopline.recipe import Recipe

Shape = ModelConfig | Mapping[str, Any]
TRAINED = {"sft", "preference", "reward", "grpo", "reject", "align", "distill"}
"""Kinds that train the checkpoint they take."""
SAMPLED = {"grpo", "reject", "align", "distill", "evaluate", "harness", "traffic", "release"}
"""Kinds that sample from it."""
ENGINE_ROWS = 64
"""Answers that are sampled at once, where a kind does not say."""
TYPICAL_PROMPT = 48
"""Tokens of a prompt, where nothing is known of it."""
SHARE_OF_PEAK = 0.5
"""Share of a large matrix product's speed that training reaches."""


@dataclass(frozen=True)
class Need:
    """What one node will need; None where it is not known."""

    node: str
    peak_bytes: int | None = None
    disk_bytes: int | None = None
    seconds: float | None = None


def needs(recipe: Recipe, speed: float | None = None) -> list[Need]:
    """One entry per node, in order. `speed` (floating-point operations per second) gives times."""
    shapes: dict[str, Shape | None] = {}
    found = []
    for node in recipe.nodes:
        shapes[node.name] = shape = shape_of(node, recipe, shapes)
        works = works_of(node)
        if shape is None or not works:
            found.append(Need(node.name))
            continue
        one = estimate(shape, works, speed, keeps=node.kind.gives in ("checkpoint", "reward_model"))
        found.append(Need(node.name, one.peak_bytes, one.disk_bytes, one.seconds))
    return found


def refuse_what_cannot_fit(recipe: Recipe) -> None:
    """Raise `UserError` for the first node whose estimated memory is above what there is."""
    limit = recipe.compute.memory_gb * 1e9 if recipe.compute.memory_gb else machine_bytes()
    for need, node in zip(needs(recipe), recipe.nodes, strict=True):
        if need.peak_bytes is not None and need.peak_bytes > limit:
            raise UserError(
                f"{node.place}: {node.name} would need about {need.peak_bytes / 1e9:.1f} GB of memory, and there are "
                f"{limit / 1e9:.1f}",
                f"lower {node.name}.rows_per_batch or {node.name}.sequence_length, train an adapter "
                f"({node.name}.adapter.rank=16), or say with compute.memory_gb that there is more",
            )


def shape_of(node: Node, recipe: Recipe, before: Mapping[str, Shape | None]) -> Shape | None:
    """The model a node works on: the start's, the plan's, or that of the checkpoint it takes."""
    if node.kind.name == "start":
        return _given(node.files["model"])
    if node.kind.name == "pretrain":
        return _planned(node, recipe)
    student = node.inputs.get("student") or node.inputs.get("start")
    for role in (student, *node.inputs.values()):
        if role is not None and before.get(role) is not None:
            return before[role]
    return None


def _given(path: Path) -> Shape | None:
    if path.is_file():
        from loopline.model.gguf_read import GGUFFile

        return GGUFFile(path).config()
    folder = path if (path / "config.json").exists() else path / "model"
    return dict(read_json(folder / "config.json")) if (folder / "config.json").exists() else None


def _planned(node: Node, recipe: Recipe) -> Shape | None:
    """The shape that the plan will choose, where its budget is in operations."""
    from loopline.plan.recipe import choose, student_shape

    if "plan" not in node.inputs:
        return None
    plan = recipe.node(node.inputs["plan"])
    data = recipe.node(plan.inputs["data"])
    settings: Any = plan.settings
    if settings.budget.flops is None:
        return None
    vocabulary: Any = data.settings
    model = choose(settings, settings.budget.flops, vocabulary.tokenizer.vocab_size).model
    return student_shape(settings, model) if getattr(node.settings, "shape", "model") == "student" else model


def works_of(node: Node) -> list[Work]:
    """What a node does with its model, from its settings; nothing for a kind of another package, whatever its name."""
    if not node.kind.function.startswith("loopline."):
        return []
    kind, settings = node.kind.name, node.settings
    answer = int(getattr(settings, "max_new_tokens", 48))
    works = []
    if kind == "pretrain":
        works.append(Work("train", rows=16, length=256, moments=1))
    if kind in TRAINED:
        adapter = getattr(settings, "adapter", None)
        works.append(
            Work(
                "train",
                rows=int(getattr(settings, "rows_per_batch", 8)),
                length=int(getattr(settings, "sequence_length", 512)),
                tokens=_trained_tokens(node),
                adapter_rank=None if adapter is None else adapter.rank,
                others=1 if kind in ("preference", "align") else 0,
            )
        )
    if kind in SAMPLED:
        works.append(Work("sample", rows=ENGINE_ROWS, length=TYPICAL_PROMPT + answer, tokens=_sampled_tokens(node)))
    return works


def _trained_tokens(node: Node) -> float:
    settings: Any = node.settings
    steps = getattr(settings, "steps", None) or 100
    if node.kind.name == "grpo":
        return float(
            steps * settings.prompts_per_step * settings.group_size * (TYPICAL_PROMPT + settings.max_new_tokens)
        )
    return float(steps * settings.batch_size * TYPICAL_PROMPT)


def _sampled_tokens(node: Node) -> float:
    settings: Any = node.settings
    answer = float(getattr(settings, "max_new_tokens", 48))
    if node.kind.name == "grpo":
        return float((settings.steps or 100) * settings.prompts_per_step * settings.group_size * answer)
    if node.kind.name == "evaluate":
        asked = min(getattr(settings, "n", 1000), 1000) * len(getattr(settings, "parts", "1"))
        return float(asked * len(getattr(settings, "modes", "1")) * getattr(settings, "samples", 1) * answer)
    return (getattr(settings, "prompts", None) or 100) * float(getattr(settings, "samples", 1)) * answer


def machine_bytes() -> float:
    """Memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def machine_speed() -> float:
    """Floating-point operations per second that training may reach here, from a matrix product timed for a moment."""
    from loopline.plan.measure import matmul_flops

    return SHARE_OF_PEAK * matmul_flops()
