"""Rollouts as a batch source: reinforcement learning is one loop of two steps, collect and train.

    source = RolloutSource(Collector(engine, tasks_by_set, ...), record)
    train(model, objective, source, steps, settings, ctx, guards=[*rollout_guards(...), source.listener])

For every `config.updates_per_rollout` optimizer steps the training loop asks `next`, which collects: attempts ->
rewards -> advantages (`rl.collect`, through the queue of `rl.rollout_queue`) -> examples, packed into micro-batches. It
trains on them, and the next collection sees the new weights. What is sampled depends only on the weights, the seed and
the step, and whatever was sampled but not trained on yet is part of the source's state: a resumed run trains on the
same samples, which it lists in `trained-*.jsonl`. Not covered: rollouts of several turns (see `agents`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_jsonl
from loopline.inference.fingerprint import fingerprint
from loopline.model.language_model import LanguageModel
from loopline.rl.collect import Collector, Rollout
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.examples import group_examples, score_examples, with_extra
from loopline.rl.explain import StepFacts, describe, explain
from loopline.rl.group import row_of
from loopline.rl.guards import Listener
from loopline.rl.kl_reward import penalize
from loopline.rl.mismatch import Mismatch, compare_examples, measure_mismatch
from loopline.rl.rollout_config import RolloutConfig
from loopline.rl.rollout_queue import RolloutQueue, Worker
from loopline.training.batch import Batch, Example
from loopline.training.policy import policy_weights
from loopline.training.prefixes import pack_shared


@dataclass(frozen=True)
class Trainable:
    """One sample that the loss will see."""

    prompt: str
    """Id of the task."""
    group: int
    """Number of its group in the rollout."""
    sample: int
    """Number of the sample in its group."""
    example: Example

    def pack(self) -> dict[str, Any]:
        """Plain values for the training state."""
        return asdict(self)

    @classmethod
    def unpack(cls, row: Mapping[str, Any]) -> Trainable:
        """What `pack` wrote."""
        return cls(**{**row, "example": Example(**row["example"])})


class RolloutSource:
    """Micro-batches of each step, sampled from the model being trained."""

    compares = True
    """Whether a sample's advantage depends on the rewards of the others in its group."""

    def __init__(
        self,
        collector: Collector,
        record: Path,
        row_length: int = 256,
        rows_per_batch: int = 8,
        reference: LanguageModel | None = None,
        worker: Worker | None = None,
        trainer: LanguageModel | None = None,
    ) -> None:
        """`collector` samples the model that is trained and says how; `record` is the folder of what it sampled.

        `reference` is the policy that a KL penalty refers to; `worker` collects in the background.
        `trainer` is the model being trained where that is not the engine's own: an adapter on it, whose merged weights
        the engine gets before each rollout.
        Raises `UserError` for settings that contradict each other.
        """
        self.engine, self.config, self.rollout = collector.engine, collector.config, collector.rollout
        self.record, self.row_length, self.rows_per_batch = record, row_length, rows_per_batch
        self.reference = reference
        self.trainer = trainer
        self.listener = Listener()
        self.facts = StepFacts()
        check_settings(self.config, self.rollout, reference)
        self.queue = RolloutQueue(collector, self.rollout.staleness, self.rollout.runtime.background, worker)
        # A layer's weights are about 12 width^2 and attending over T ids costs 2 T width, so the two meet at 6 width;
        # attention runs at a lower rate than the products.
        self._attention_length = 4 * self.engine.model.config.hidden_size
        self._number = self._step = -1
        self._parts: list[list[Trainable]] = []
        self._tokens = 0
        self._handed = 0.0
        self._speed = 0.0

    @property
    def taken(self) -> int:
        """One more than the number of the last rollout."""
        return self._number + 1

    @property
    def steps(self) -> int:
        """One more than the number of the last step."""
        return self._step + 1

    def next(self, step: int) -> Sequence[Batch]:
        """Micro-batches of `step`: its share of a rollout, which is collected for the first step on it."""
        number, part = divmod(step, self.config.updates_per_rollout)
        if part == 0 or number != self._number:
            self._parts, self._number = self.collect(number, step), number
        chosen = self._parts[part]
        self.facts = replace(self.facts, age=float(step - self.facts.version), update=part)
        write_jsonl(
            self.record / f"trained-{step:06d}.jsonl",
            ({"step": step, "rollout": number, "task": t.prompt, "group": t.group, "sample": t.sample} for t in chosen),
        )
        self.listener.metrics = {}
        self._step = step
        self._handed = time.monotonic()
        return self._packed([item.example for item in chosen])

    def collect(self, number: int, step: int) -> list[list[Trainable]]:
        """Rollout `number` as examples, in as many shares as there are updates on it."""
        if self.trainer is not None:
            self.engine.load(policy_weights(self.trainer, self.engine.model), step)
        rollout = self.queue.take(number, step)
        write_jsonl(self.record / f"{number:06d}.jsonl", (row_of(number, group) for group in rollout.groups))
        items = self._penalized(rollout, self._score(rollout, self._trainable(rollout)))
        self.facts = StepFacts.of_rollout(rollout)
        if self._measured is not None:
            self.facts = replace(self.facts, mismatch=self._measured.kl, mismatch_max=self._measured.largest)
        updates = self.config.updates_per_rollout
        places = {group: place for place, group in enumerate(rollout.kept)}
        return [[item for item in items if places[item.group] % updates == part] for part in range(updates)]

    def _packed(self, examples: Sequence[Example]) -> list[Batch]:
        self._tokens = sum(len(example.tokens) for example in examples)
        if not examples:
            return []
        # A long prompt with a long answer gets the longer rows it needs.
        row_length = max([self.row_length, *(len(example.tokens) for example in examples)])
        return pack_shared(examples, row_length, self.rows_per_batch, self._attention_length)

    @property
    def _penalizes(self) -> bool:
        """Whether the samples of a group are compared by rewards that the KL was taken from."""
        return self.compares and self.config.kl_in == "reward" and self.config.kl_coefficient > 0

    def _trainable(self, rollout: Rollout) -> list[Trainable]:
        """The samples of the kept groups that a loss may see, and those that other samples' advantages depend on."""
        config, places = self.config, list(rollout.kept)
        if self._penalizes:
            config = config.model_copy(update={"mask_truncated": False})
            if config.scale_rewards == "batch":
                places = list(range(len(rollout.groups)))
        return [
            Trainable(rollout.groups[place].task.id, place, sample, example)
            for place in places
            for sample, example in group_examples(rollout.groups[place], config)
        ]

    def _penalized(self, rollout: Rollout, items: list[Trainable]) -> list[Trainable]:
        """The samples that the loss may see, their advantages less the KL where it counts there."""
        if not self._penalizes:
            return items
        config = self.config
        rewards = [group.rewards for group in rollout.groups]
        found = penalize(rewards, {(item.group, item.sample): item.example for item in items}, config)
        kept = set(rollout.kept)
        return [
            replace(item, example=found[item.group, item.sample])
            for item in items
            if item.group in kept and not (config.mask_truncated and self._truncated(rollout, item))
        ]

    @staticmethod
    def _truncated(rollout: Rollout, item: Trainable) -> bool:
        return rollout.groups[item.group].completions[item.sample].finish == "length"

    def _score(self, rollout: Rollout, items: list[Trainable]) -> list[Trainable]:
        """The samples with the log-probs that the losses ask for beside the sampler's."""
        self._measured = self._against_trainer(rollout)
        examples = [item.example for item in items]
        if self.rollout.old_logprobs == "trainer" and examples:
            scores = self._scores(self.trainer or self.engine.model, examples)
            if not self.rollout.staleness:
                self._measured = compare_examples(examples, scores)
            examples = [
                with_extra(example, sampler_logprobs=example.extras["old_logprobs"], old_logprobs=values)
                for example, values in zip(examples, scores, strict=True)
            ]
        if self.reference is not None:
            scores = self._scores(self.reference, examples)
            examples = [with_extra(e, reference_logprobs=values) for e, values in zip(examples, scores, strict=True)]
        return [replace(item, example=example) for item, example in zip(items, examples, strict=True)]

    def _against_trainer(self, rollout: Rollout) -> Mismatch | None:
        """The sampler compared with a trainer that is another model; None where it is the same, or older weights."""
        if self.trainer is None or self.rollout.staleness or not self.rollout.mismatch_samples:
            return None
        return measure_mismatch(self.trainer, rollout.groups, self.config, self.rollout.mismatch_samples)

    def _scores(self, model: LanguageModel, examples: Sequence[Example]) -> list[list[float]]:
        return score_examples(model, examples, self.config.temperature, self.row_length, self.rows_per_batch)

    def metrics(self) -> dict[str, float]:
        return self.facts.metrics()

    def why(self) -> str:
        """What the last step could learn from, and its numbers, in words. Asked first, it takes the update's time."""
        if self._tokens:
            self._speed, self._tokens = self._tokens / max(time.monotonic() - self._handed, 1e-9), 0
        return f"{self._sentence(self.facts)} {describe(self.facts, self.listener.metrics, self._speed)}"

    def _sentence(self, facts: StepFacts) -> str:
        return explain(facts)

    def state_dict(self) -> dict[str, Any]:
        """Samples that were not trained on yet, what was counted so far, and which reference there is."""
        parts = [[item.pack() for item in part] for part in self._parts]
        # A rollout whose updates are all done is not needed again.
        done = not parts or self.facts.update + 1 == self.config.updates_per_rollout
        return {
            "queue": self.queue.state_dict(),
            "number": self._number,
            "step": self._step,
            "facts": asdict(self.facts),
            "parts": [] if done else parts,
            "reference": "" if self.reference is None else fingerprint(self.reference.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `UserError` when the run had another reference policy."""
        found = "" if self.reference is None else fingerprint(self.reference.state_dict())
        if found != state["reference"]:
            raise UserError(
                "The reference policy is not the one this run began with",
                "give the same starting checkpoint, or start the run again without its state",
            )
        self.queue.load_state_dict(state["queue"])
        self._parts = [[Trainable.unpack(row) for row in part] for part in state["parts"]]
        self.facts = StepFacts(**state["facts"])
        self._number, self._step = state["number"], state["step"]

    def close(self) -> None:
        """End what collects in the background."""
        self.queue.close()

    def __enter__(self) -> RolloutSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_settings(config: PolicyGradientConfig, rollout: RolloutConfig, reference: LanguageModel | None) -> None:
    """Raise `UserError` for settings that contradict each other."""
    corrected = config.importance_correction != "none"
    if corrected and rollout.old_logprobs == "sampler":
        raise UserError(
            f"importance_correction is {config.importance_correction!r}, but rollout.old_logprobs is 'sampler': the "
            "ratios are taken against the sampler already, so there is nothing to correct",
            "set rollout.old_logprobs to trainer, or importance_correction to none",
        )
    if rollout.staleness and rollout.old_logprobs == "trainer" and not corrected:
        raise UserError(
            "rollout.staleness lets older weights sample, and rollout.old_logprobs 'trainer' forgets which: the loss "
            "would be biased",
            "set importance_correction (for example token_truncate), or rollout.old_logprobs to sampler",
        )
    if config.kl_coefficient and reference is None:
        raise UserError("kl_coefficient is set, but there is no reference policy", "give the policy to stay close to")


def gather_records(record: Path, rollouts: int) -> list[dict[str, Any]]:
    """Every group of the rollouts below `rollouts`, in order; leftovers of later ones are ignored."""
    return _gather(record, "[0-9]*.jsonl", rollouts)


def gather_trained(record: Path, steps: int) -> list[dict[str, Any]]:
    """Which samples each optimizer step below `steps` trained on."""
    return _gather(record, "trained-*.jsonl", steps)


def _gather(record: Path, pattern: str, limit: int) -> list[dict[str, Any]]:
    files = sorted((int(file.stem.removeprefix("trained-")), file) for file in record.glob(pattern))
    return [row for number, file in files if number < limit for row in read_jsonl(file)]
