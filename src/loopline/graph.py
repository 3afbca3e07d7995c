"""The line as a table: nine stages and two loops as nodes that hand each other artifacts.

Each node names its function, the recipe section that configures it, and where each input comes from. `loopline
stages` prints it. Editing the line means editing this table. Not covered: running it (see `loopline.line`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.base.config import Config

ROOMS = {
    1: "Raw data",
    2: "Data engineering",
    3: "System recipe",
    4: "Pretraining",
    5: "Post-training",
    6: "Graders and evaluation",
    7: "Agent harness",
    8: "Distillation",
    9: "Deployment",
}

CONFIGS = {
    "raw": "loopline.corpus.config:RawConfig",
    "tasks": "loopline.tasks.config:TasksConfig",
    "data": "loopline.corpus.config:DataConfig",
    "plan": "loopline.plan.config:PlanConfig",
    "pretrain": "loopline.pretrain.config:PretrainConfig",
    "graders": "loopline.grading.config:GradersConfig",
    "evaluate": "loopline.evaluation.config:EvaluateConfig",
    "evaluate_next": "loopline.evaluation.config:EvaluateNextConfig",
    "sft": "loopline.posttrain.config:SFTConfig",
    "grpo": "loopline.posttrain.config:GRPOConfig",
    "rft": "loopline.posttrain.config:RFTConfig",
    "align": "loopline.posttrain.config:AlignConfig",
    "harness": "loopline.agents.config:HarnessSearchConfig",
    "traces": "loopline.distill.config:TracesConfig",
    "student_base": "loopline.distill.config:StudentBaseConfig",
    "student": "loopline.distill.config:StudentConfig",
    "quantize": "loopline.distill.config:QuantizeConfig",
    "release": "loopline.release.config:ReleaseConfig",
    "traffic": "loopline.serve.config:TrafficConfig",
    "traffic_data": "loopline.corpus.config:TrafficDataConfig",
    "retrain": "loopline.posttrain.config:RetrainConfig",
    "loop_traffic": "loopline.release.config:GateConfig",
    "remix": "loopline.plan.config:RemixConfig",
    "pretrain_next": "loopline.pretrain.config:ContinueConfig",
    "loop_benchmarks": "loopline.release.config:BenchmarkGateConfig",
}
"""Recipe section to config class."""


@dataclass(frozen=True)
class StageSpec:
    """One node of the line."""

    name: str
    room: int
    """Which of the nine stages it belongs to."""
    function: str
    """"module:name", imported only when it runs."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role to node."""
    section: str = ""
    """Recipe section; empty is the node's own name."""
    kind: str = "checkpoint"
    """What its artifact holds."""
    version: int = 1
    """Raised by hand when the stage's results change for the same config and inputs."""

    @property
    def recipe_section(self) -> str:
        return self.section or self.name

    def load(self) -> Callable[[Any, Mapping[str, Any], Any], None]:
        """The stage function."""
        function: Callable[[Any, Mapping[str, Any], Any], None] = load_name(self.function)
        return function


def load_name(name: str) -> Any:
    """What "module:name" refers to."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def config_class(section: str) -> type[Config]:
    """The config class of a recipe section."""
    found: type[Config] = load_name(CONFIGS[section])
    return found


def evaluation(checkpoint: str, section: str = "evaluate") -> StageSpec:
    """The node that evaluates `checkpoint` on held-out tasks and held-out text."""
    inputs = {"checkpoint": checkpoint, "tasks": "tasks", "graders": "graders", "data": "data"}
    return StageSpec(f"evaluate_{checkpoint}", 6, "loopline.evaluation.stage:evaluate", inputs, section, "evaluation")


CANDIDATES = ("sft", "grpo", "rft", "align", "student", "quantize")
"""Checkpoints that may be released."""

LINE: tuple[StageSpec, ...] = (
    StageSpec("raw", 1, "loopline.corpus.stage:raw", kind="documents"),
    StageSpec("tasks", 1, "loopline.tasks.stage:tasks", kind="tasks"),
    StageSpec("data", 2, "loopline.corpus.stage:data", {"raw": "raw", "tasks": "tasks"}, kind="corpus"),
    StageSpec("graders", 6, "loopline.grading.stage:graders", {"tasks": "tasks"}, kind="graders"),
    StageSpec("plan", 3, "loopline.plan.stage:plan", {"data": "data"}, kind="plan"),
    StageSpec("pretrain", 4, "loopline.pretrain.stage:pretrain", {"data": "data", "plan": "plan"}),
    evaluation("pretrain"),
    StageSpec("sft", 5, "loopline.posttrain.stage:sft", {"base": "pretrain", "tasks": "tasks"}),
    evaluation("sft"),
    StageSpec("grpo", 5, "loopline.posttrain.stage:grpo", {"policy": "sft", "tasks": "tasks", "graders": "graders"}),
    evaluation("grpo"),
    StageSpec("rft", 5, "loopline.posttrain.stage:rft", {"policy": "grpo", "tasks": "tasks"}),
    evaluation("rft"),
    StageSpec("align", 5, "loopline.posttrain.stage:align", {"policy": "rft", "tasks": "tasks", "graders": "graders"}),
    evaluation("align"),
    StageSpec(
        "harness",
        7,
        "loopline.agents.stage:harness",
        {"policy": "align", "tasks": "tasks", "graders": "graders"},
        kind="harness",
    ),
    StageSpec(
        "traces",
        8,
        "loopline.distill.stage:traces",
        {"teacher": "align", "tasks": "tasks", "graders": "graders"},
        kind="traces",
    ),
    StageSpec("student_base", 8, "loopline.distill.stage:student_base", {"data": "data", "plan": "plan"}),
    StageSpec(
        "student_plain", 8, "loopline.distill.stage:student", {"base": "student_base", "tasks": "tasks"}, "student"
    ),
    evaluation("student_plain"),
    StageSpec(
        "student",
        8,
        "loopline.distill.stage:student",
        {"base": "student_base", "tasks": "tasks", "traces": "traces"},
    ),
    evaluation("student"),
    StageSpec("quantize", 8, "loopline.distill.stage:quantize", {"checkpoint": "align"}),
    evaluation("quantize"),
    StageSpec(
        "release",
        9,
        "loopline.release.stage:release",
        {
            **{f"candidates.{name}": name for name in CANDIDATES},
            **{f"evaluations.{name}": f"evaluate_{name}" for name in CANDIDATES},
            "harness": "harness",
            "tasks": "tasks",
            "graders": "graders",
            "data": "data",
        },
        kind="release",
    ),
    StageSpec(
        "traffic",
        9,
        "loopline.serve.stage:traffic",
        {"release": "release", "tasks": "tasks", "graders": "graders"},
        kind="traffic",
    ),
    StageSpec(
        "traffic_data",
        2,
        "loopline.corpus.stage:traffic_data",
        {"traffic": "traffic", "tasks": "tasks"},
        kind="corpus",
    ),
    StageSpec(
        "retrain",
        5,
        "loopline.posttrain.stage:retrain",
        {"policy": "release", "traffic": "traffic_data", "tasks": "tasks"},
    ),
    evaluation("retrain"),
    StageSpec(
        "loop_traffic",
        9,
        "loopline.release.stage:gate",
        {"before": "release", "after": "evaluate_retrain", "tasks": "tasks"},
        kind="decision",
    ),
    StageSpec(
        "remix", 3, "loopline.plan.stage:remix", {"data": "data", "evaluations": "evaluate_pretrain"}, kind="mixture"
    ),
    StageSpec(
        "pretrain_next",
        4,
        "loopline.pretrain.stage:continue_pretraining",
        {"base": "pretrain", "data": "data", "plan": "plan", "mixture": "remix"},
    ),
    StageSpec(
        "pretrain_control",
        4,
        "loopline.pretrain.stage:continue_pretraining",
        {"base": "pretrain", "data": "data", "plan": "plan", "mixture": "remix"},
        "pretrain_next",
    ),
    evaluation("pretrain_next", "evaluate_next"),
    evaluation("pretrain_control", "evaluate_next"),
    StageSpec(
        "loop_benchmarks",
        4,
        "loopline.release.stage:gate_benchmarks",
        {
            "before": "evaluate_pretrain",
            "after": "evaluate_pretrain_next",
            "control": "evaluate_pretrain_control",
            "tasks": "tasks",
        },
        kind="decision",
    ),
)
"""Every node, in an order in which they can run."""


def upstream(line: Sequence[StageSpec], name: str) -> list[StageSpec]:
    """`name` and everything it needs, in order. Raises `KeyError` for an unknown node."""
    by_name = {spec.name: spec for spec in line}
    wanted, open_names = set(), [name]
    while open_names:
        current = open_names.pop()
        if current not in wanted:
            wanted.add(current)
            open_names += by_name[current].inputs.values()
    return [spec for spec in line if spec.name in wanted]


def check(line: Sequence[StageSpec]) -> None:
    """Raise `ValueError` when a node comes before what it needs, or two share a name."""
    seen: set[str] = set()
    for spec in line:
        missing = sorted(set(spec.inputs.values()) - seen)
        if missing or spec.name in seen:
            raise ValueError(f"{spec.name}: {'needs ' + ', '.join(missing) if missing else 'appears twice'}")
        seen.add(spec.name)
