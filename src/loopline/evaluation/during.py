"""The measurement behind evaluations during training: answers to development tasks, graded.

    with development(config.evaluate, model, start, inputs, ctx, max_new_tokens=64) as evaluations:
        train(..., evaluations=evaluations)

Nothing is measured, and None handed out, while `evaluate.every` is 0. Only the development part is ever read here.
Not covered: when to measure and what is kept (see `training.evaluations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loopline.attempts.ask import ask
from loopline.base.errors import UserError
from loopline.chat.load import load_tokenizer
from loopline.evaluation.evaluate import interval
from loopline.evaluation.stage import chosen_tasks
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import load_model
from loopline.model.language_model import LanguageModel
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.training.config import DevelopmentConfig
from loopline.training.evaluations import Evaluations, Measured
from loopline.training.policy import has_merged_weights, policy_weights


@contextmanager
def development(
    config: DevelopmentConfig,
    model: LanguageModel,
    start: Path,
    inputs: Mapping[str, Artifact],
    ctx: Context,
    max_new_tokens: int | None = None,
) -> Iterator[Evaluations | None]:
    """Evaluations of `model`, which training began in `start`, on the artifact "tasks" of `inputs`.

    Its graders are those of "graders", or where there are none those that the tasks artifact defines. `max_new_tokens`
    is the length where the config sets none. Raises `UserError` without tasks, or without a development part of them.
    """
    if not config.every:
        yield None
        return
    if "tasks" not in inputs:
        raise UserError(
            f"evaluate.every is {config.every}, but there are no task sets",
            "define `tasks`, or set evaluate.every to 0",
        )
    tasks = [task.with_facts() for task in chosen_tasks(inputs["tasks"].path, config.tasks, ("dev",), config.n)]
    sampling = Sampling(config.max_new_tokens or max_new_tokens or 256, temperature=config.temperature)
    # An adapter is measured as it will be saved: merged into a plain model.
    plain = load_model(start, ctx.device).eval() if has_merged_weights(model) else model
    engine = TorchEngine(plain, load_tokenizer(start))
    seed = ctx.seed_for("development")
    definitions = inputs.get("graders", inputs["tasks"]) / "graders.json"
    with GraderSet.from_json(definitions, workers=ctx.threads) as graders:

        def measure() -> Measured:
            if plain is not model:
                engine.load(policy_weights(model, plain), engine.version + 1)
            groups = ask(engine, tasks, sampling, graders=graders, seed=seed)
            found = interval("score", [attempt.score for group in groups for attempt in group], seed)
            if found["value"] is None:
                raise UserError("No answer to a development task could be graded", "fix the grader, see its evidence")
            return {"score": found["value"], "low": found["low"], "high": found["high"], "n": found["n"]}

        yield Evaluations(config, measure, ctx.state / "best")
