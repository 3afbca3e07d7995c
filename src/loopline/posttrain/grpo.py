"""Reasoning RL on verifiable rewards: GRPO, or PPO with a value network.

Refuses to start with a grader whose audit shows that it pays for answers that solve nothing. Every group sampled goes
to `rollouts.jsonl`, which samples each step was trained on to `log/trained.jsonl`, and a line per step on what could be
learnt from them to `log/why.txt` and the progress bar. PPO's value network is saved in `value/`. Not covered:
multi-turn environments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.grading.audit import failed_probes
from loopline.grading.graders import GraderSet
from loopline.inference.engine import TorchEngine
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.heads import ScoreModel
from loopline.posttrain.config import GRPOConfig
from loopline.rl.collect import Collector
from loopline.rl.guards import rollout_guards
from loopline.rl.objective import GRPO
from loopline.rl.ppo import PPO, ActorCritic, PPORolloutSource
from loopline.rl.rollout import RolloutSource, gather_records, gather_trained
from loopline.rl.rollout_queue import ProcessWorker
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_tasks
from loopline.training.config import OptimizerConfig, TrainingConfig
from loopline.training.conversations import sets_of
from loopline.training.guards import Guard
from loopline.training.loop import train
from loopline.training.policy import load_policy, save_policy


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
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=wanted)
    refuse_bad_graders(inputs["graders"], {task.grader for task in tasks} | set(config.reward.graders))
    if config.algorithm == "ppo":
        # The value network tells answers apart where their siblings do not.
        config = config.model_copy(update={"drop_zero_signal": False})
    start = inputs["policy"].path
    policy = load_policy(start, config.adapter, ctx.device)
    plain = policy if config.adapter is None else load_model(start, ctx.device).eval()
    engine = TorchEngine(plain, load_tokenizer(start))
    task_sets = sets_of(tasks, config.shares)
    definitions = inputs["graders"] / "graders.json"
    record = ctx.state / "rollouts"
    settings = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=config.learning_rate, weight_decay=0.0),
        schedule=config.schedule,
        runtime=config.runtime,
        divide=config.divide,
    )
    worker: ProcessWorker | None = None
    if config.rollout.runtime.background == "process":
        plan = CollectorPlan(start, ctx.device, task_sets, config, definitions, ctx.seed_for("rollouts"))
        worker = ProcessWorker(plan.make, config.rollout.runtime.threads)
    with GraderSet.from_json(definitions) as graders:
        collector = Collector(
            engine, task_sets, config.shares, graders, config.reward, config, config.rollout, ctx.seed_for("rollouts")
        )
        rollouts: dict[str, Any] = {
            "collector": collector,
            "record": record,
            "reference": load_model(start, ctx.device).eval() if config.kl_coefficient else None,
            "worker": worker,
            "trainer": None if plain is policy else policy,
        }
        objective: Any = GRPO.from_config(config)
        if config.algorithm == "ppo":
            critic = ActorCritic(policy, ScoreModel(load_model(start, ctx.device)))
            trained: Any = critic
            source: RolloutSource = PPORolloutSource(critic, config.ppo, **rollouts)
            objective = PPO(objective, config.ppo)
        else:
            trained, source = policy, RolloutSource(**rollouts)
        with source:
            guards: list[Guard] = [*rollout_guards(config.guards), source.listener]
            last = train(trained, objective, source, config.steps, settings, ctx, "reasoning RL", guards)
    save_policy(policy, start, ctx.out)
    if config.algorithm == "ppo":
        save_checkpoint(critic.value, start, ctx.out / "value")
    write_jsonl(ctx.out / "rollouts.jsonl", gather_records(record, source.taken))
    write_jsonl(ctx.out / "log" / "trained.jsonl", gather_trained(record, source.steps))
    ctx.metrics.summary(reward=last["reward"], thinking_share=last["rollout/thinking_share"])


@dataclass(frozen=True)
class CollectorPlan:
    """What a rollout process builds its sampler from; the weights come with every request."""

    policy: Path
    device: str
    tasks_by_set: Mapping[str, Sequence[Task]]
    config: GRPOConfig
    graders: Path
    seed: int

    @contextmanager
    def make(self) -> Iterator[Collector]:
        """The collector, with graders and a sandbox of its own."""
        engine = TorchEngine(load_model(self.policy, self.device).eval(), load_tokenizer(self.policy))
        config = self.config
        with GraderSet.from_json(self.graders) as graders:
            yield Collector(
                engine, self.tasks_by_set, config.shares, graders, config.reward, config, config.rollout, self.seed
            )
