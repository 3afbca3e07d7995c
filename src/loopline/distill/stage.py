"""Stage 8, distillation and specialization: a large policy's verified traces teach a smaller one.

    loopline run laptop --until student

`traces` samples the teacher and keeps what the graders pass. `student_base` pretrains the small decoder once; `student`
fine-tunes it with the traces when it is given them and on the written answers otherwise, the same number of rows and
steps, so that the difference is the traces. `quantize` writes int8 weights. Not covered: logit distillation,
distillation across tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.attempts.ask import ask
from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl
from loopline.distill.config import QuantizeConfig, TracesConfig
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import load_tasks
from loopline.training.sources import set_indices


def traces(config: TracesConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Sample the teacher on training tasks and keep the verified answers, the shortest of each task."""
    teacher = inputs["teacher"].path
    engine = TorchEngine.from_checkpoint(teacher, device=ctx.device)
    wanted = sorted(name for name, share in config.shares.items() if share > 0)
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=wanted)
    by_set = {name: [task for task in tasks if task.task_set == name] for name in wanted}
    sizes = {name: len(members) for name, members in by_set.items()}
    chosen = [by_set[name][i] for name, i in set_indices(sizes, config.shares, config.prompts, 0, ctx.seed)]
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, n=config.samples)
    with (
        GraderSet.from_json(inputs["graders"] / "graders.json") as graders,
        ctx.progress("sampling traces", len(chosen)) as bar,
    ):
        state = ctx.state / "traces"
        groups = ask(engine, chosen, sampling, graders=graders, seed=ctx.seed, state=state, progress=bar.advance)
    verified = [[attempt for attempt in group if attempt.score == 1] for group in groups]
    shortest = {
        group[0].task.id: min(group, key=lambda attempt: (len(attempt.text), attempt.text))
        for group in verified
        if group
    }
    if len(shortest) < config.minimum:
        raise UserError(
            f"The teacher solved only {len(shortest)} of {len(chosen)} tasks, fewer than traces.minimum "
            f"({config.minimum})",
            "distill from a stronger checkpoint, raise traces.prompts, or lower traces.minimum",
        )
    rows = [
        {
            "task": name,
            "task_set": best.task.task_set,
            "messages": [*best.task.messages, {"role": "assistant", "content": best.text}],
        }
        for name, best in shortest.items()
    ]
    write_jsonl(ctx.out / "rows.jsonl", rows)
    write_json(
        ctx.out / "traces.json", {"prompts": len(chosen), "verified": sum(map(len, verified)), "kept": len(rows)}
    )
    ctx.metrics.summary(prompts=len(chosen), kept=len(rows))


def quantize(config: QuantizeConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write a checkpoint with int8 linear weights."""
    del config
    source = inputs["checkpoint"].path
    save_checkpoint(load_model(source), source, ctx.out, int8=True)
    before = (source / "model.safetensors").stat().st_size
    after = (ctx.out / "model.safetensors").stat().st_size
    ctx.metrics.summary(bytes_before=before, bytes_after=after)
