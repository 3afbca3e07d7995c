"""Reasoning RL on verifiable rewards: GRPO, or PPO with a value network. Any checkpoint, any task sets with graders.

    - grpo: {tasks: [math], steps: 200, evaluate: {every: 50}}

One loop of two steps: collect (attempts -> rewards -> advantages -> examples, see `rl.rollout`), and train (see
`training.loop`). Refuses to start with a grader whose audit shows that it rewards answers that solve nothing, and
leaves out prompts that hold development or held-out tasks. Every group sampled goes to `rollouts.jsonl`, which samples
each step was trained on to `log/trained.jsonl`, and a line per step on what could be learned from them to `log/why.txt`
and the progress bar.
PPO's value network is saved in `value/`. Not covered: multi-turn environments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loopline.attempts.fit import that_fit
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.evaluation.during import development
from loopline.grading.audit import failed_probes
from loopline.grading.graders import GraderSet
from loopline.inference.engine import TorchEngine
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.heads import ScoreModel
from loopline.posttrain.config import GRPOConfig
from loopline.posttrain.data import checkpoint_of, heldout_of
from loopline.rl.collect import Collector
from loopline.rl.guards import rollout_guards
from loopline.rl.objective import GRPO
from loopline.rl.ppo import PPO, ActorCritic, PPORolloutSource
from loopline.rl.rollout import RolloutSource, gather_records, gather_trained
from loopline.rl.rollout_queue import ProcessWorker
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.sets import read_sets, select_sets, tags_of
from loopline.tasks.task import Task, load_tasks
from loopline.training.conversations import sets_of
from loopline.training.guards import Guard
from loopline.training.lengths import position_limit
from loopline.training.loop import train
from loopline.training.policy import load_policy, save_policy


def refuse_bad_graders(graders: Artifact, names: set[str]) -> None:
    """Raise `UserError` when a grader in `names` was not audited, or its audit failed."""
    audit = read_json(graders / "audit.json")
    for name in sorted(names):
        if name not in audit:
            raise UserError(f"The grader {name!r} was never audited", f"add {name!r} to the graders stage")
        # Someone who saw what it rewards may have said to go on.
        if not audit[name]["passed"] and not audit[name].get("forced"):
            raise UserError(
                f"The grader {name!r} failed its audit, and training would learn what it rewards: "
                f"{'; '.join(failed_probes(audit[name]))}",
                "use a stricter grader for these tasks, or fix its definition until the audit passes",
            )


def grpo(config: GRPOConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train "policy" by reinforcement on the training part of "tasks"."""
    start = checkpoint_of(inputs["policy"]).path
    tokenizer = load_tokenizer(start)
    tasks, shares = prompts(config, inputs)
    refuse_bad_graders(inputs["graders"], {task.grader for task in tasks} | set(config.reward.graders))
    if config.algorithm == "ppo":
        # The value network learns from groups whose rewards are all equal, too.
        config = config.model_copy(update={"drop_zero_signal": False})
    overlong: Literal["drop", "refuse"] = "drop" if config.overlong == "drop" else "refuse"
    tasks = that_fit(tokenizer, tasks, config.max_new_tokens, position_limit(start), overlong)
    policy = load_policy(start, config.adapter, ctx.device)
    plain = policy if config.adapter is None else load_model(start, ctx.device).eval()
    plan = CollectorPlan(
        start, ctx.device, sets_of(tasks, shares), shares, config, inputs["graders"] / "graders.json",
        ctx.seed_for("rollouts"),
    )  # fmt: skip
    worker: ProcessWorker | None = None
    if config.rollout.runtime.background == "process":
        worker = ProcessWorker(plan.make, config.rollout.runtime.threads)
    record = ctx.state / "rollouts"
    with (
        plan.around(TorchEngine(plain, tokenizer)) as collector,
        development(config.evaluate, policy, start, inputs, ctx, config.max_new_tokens) as evaluations,
    ):
        rollouts: dict[str, Any] = {
            "collector": collector,
            "record": record,
            "row_length": config.sequence_length,
            "rows_per_batch": config.rows_per_batch,
            "reference": load_model(start, ctx.device).eval() if config.kl_coefficient else None,
            "worker": worker,
            "trainer": None if plain is policy else policy,
        }
        objective: Any = GRPO.from_config(config)
        trained: Any = policy
        if config.algorithm == "ppo":
            trained = critic = ActorCritic(policy, ScoreModel(load_model(start, ctx.device)))
            source: RolloutSource = PPORolloutSource(critic, config.ppo, **rollouts)
            objective = PPO(objective, config.ppo)
        else:
            source = RolloutSource(**rollouts)
        with source:
            guards: list[Guard] = [*rollout_guards(config.rollout_guards), source.listener]
            last = train(trained, objective, source, config.steps, config, ctx, "reasoning RL", guards, evaluations)
    save_policy(policy, start, ctx.out)
    if config.algorithm == "ppo":
        save_checkpoint(critic.value, start, ctx.out / "value")
    write_jsonl(ctx.out / "rollouts.jsonl", gather_records(record, source.taken))
    write_jsonl(ctx.out / "log" / "trained.jsonl", gather_trained(record, source.steps))
    ctx.metrics.summary(reward=last["reward"], thinking_share=last["rollout/thinking_share"])


def prompts(config: GRPOConfig, inputs: Mapping[str, Artifact]) -> tuple[list[Task], dict[str, float]]:
    """The training tasks that hold no development or held-out task, and the shares of their sets.

    Raises `UserError` for a chosen set of which none is left.
    """
    sets = read_sets(inputs["tasks"] / "sets.json")
    tagged = any("reasoning" in tags_of(entry) for entry in sets.values())
    shares = select_sets(config.tasks or (["tag:reasoning"] if tagged else None), sets)
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=list(shares))
    heldout = heldout_of(inputs)
    clean = [task for task in tasks if heldout is None or not heldout.within(task.messages)]
    for name in shares:
        if not any(task.task_set == name for task in clean):
            raise UserError(
                f"Every training prompt of {name} holds a task that is kept for testing",
                "give it prompts that differ from the development and held-out parts",
            )
    return clean, shares


@dataclass(frozen=True)
class CollectorPlan:
    """What a collector is made of, also in a rollout process, where the weights come with every request."""

    policy: Path
    device: str
    tasks_by_set: Mapping[str, Sequence[Task]]
    shares: Mapping[str, float]
    config: GRPOConfig
    graders: Path
    seed: int

    @contextmanager
    def around(self, engine: TorchEngine) -> Iterator[Collector]:
        """The collector over `engine`, with graders and a sandbox of its own."""
        config = self.config
        with GraderSet.from_json(self.graders) as graders:
            yield Collector(
                engine, self.tasks_by_set, self.shares, graders, config.reward, config, config.rollout, self.seed
            )

    @contextmanager
    def make(self) -> Iterator[Collector]:
        """The collector over an engine of its own."""
        engine = TorchEngine(load_model(self.policy, self.device).eval(), load_tokenizer(self.policy))
        with self.around(engine) as collector:
            yield collector
