"""Reasoning RL: GRPO on verifiable rewards.

Refuses to start with a grader whose audit shows that it pays for answers that solve nothing. Every group sampled goes
to `rollouts.jsonl`, and one sentence per step on what could be learnt from them to `log/why.txt` and the progress bar.
Not covered: asynchronous rollouts, KL penalties, multi-turn environments.
"""

from __future__ import annotations

from collections.abc import Mapping

from throughline.base.errors import UserError
from throughline.base.files import read_json, write_jsonl
from throughline.grading.audit import failed_probes
from throughline.grading.graders import GraderSet
from throughline.grading.tasks import load_tasks
from throughline.inference.engine import TorchEngine
from throughline.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from throughline.posttrain.config import GRPOConfig
from throughline.rl.objective import GRPO
from throughline.rl.rollout import RolloutSource, gather_records
from throughline.store.artifact import Artifact
from throughline.store.context import Context
from throughline.training.config import OptimizerConfig, TrainConfig
from throughline.training.conversations import families_of
from throughline.training.loop import train


def refuse_bad_graders(graders: Artifact, names: set[str]) -> None:
    """Raise `UserError` when a grader in `names` was not audited, or its audit failed."""
    audit = read_json(graders / "audit.json")
    for name in sorted(names):
        if name not in audit:
            raise UserError(f"The grader {name!r} was never audited", f"add {name!r} to the graders stage")
        # Someone who saw what it pays for may have said to go on.
        if not audit[name]["passed"] and not audit[name].get("forced"):
            raise UserError(
                f"The grader {name!r} failed its audit, and training would learn what it pays for: "
                f"{'; '.join(failed_probes(audit[name]))}",
                "use a stricter grader for these tasks, or mend its definition until the audit passes",
            )


def grpo(config: GRPOConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train a policy by reinforcement on the training tasks."""
    wanted = [name for name, share in config.shares.items() if share > 0]
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", families=wanted)
    refuse_bad_graders(inputs["graders"], {task.grader for task in tasks} | set(config.reward.graders))
    start = inputs["policy"].path
    model = load_model(start, ctx.device)
    engine = TorchEngine(model, load_tokenizer(start))
    with GraderSet.from_json(inputs["graders"] / "graders.json") as graders:
        source = RolloutSource(
            engine,
            families_of(tasks, config.shares),
            config.shares,
            graders,
            config.reward,
            config,
            ctx.seed_for("rollouts"),
            ctx.state / "rollouts",
        )
        settings = TrainConfig(
            optimizer=OptimizerConfig(learning_rate=config.learning_rate, weight_decay=0.0),
            schedule=config.schedule,
            runtime=config.runtime,
        )
        objective = GRPO(config.clip_low, config.clip_high, config.temperature)
        last = train(model, objective, source, config.steps, settings, ctx, "reasoning RL")
    save_checkpoint(model, start, ctx.out)
    write_jsonl(ctx.out / "rollouts.jsonl", gather_records(ctx.state / "rollouts", source.taken))
    ctx.metrics.summary(reward=last["reward"], thinking_share=last["rollout/thinking_share"])
