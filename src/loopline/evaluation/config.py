"""Settings of evaluations: of a checkpoint or an endpoint, and of a model while it is trained. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from loopline.base.config import Config, InputFile
from loopline.base.stage import Takes, stage

Mode = Literal["sampled", "greedy"]
Part = Literal["dev", "heldout"]


class EndpointConfig(Config):
    """A model behind an OpenAI-compatible API, which renders, stops and decodes by itself."""

    url: str
    """Where `/chat/completions` would follow, as in http://localhost:8000/v1."""
    model: str
    """The name that the server gives the model."""
    key_env: str | None = None
    """Environment variable that holds the key; empty sends none."""
    concurrency: int = Field(default=16, ge=1)
    """Requests at once."""


@stage(
    "evaluate",
    run="loopline.evaluation.stage:evaluate",
    takes={
        "checkpoint": Takes("checkpoint", required=False),
        "tasks": Takes("tasks"),
        "graders": Takes("graders"),
        "data": Takes("corpus", required=False),
    },
    gives="evaluation",
    area=6,
    version=2,
)
class EvaluateConfig(Config):
    """Graded answers of a checkpoint, or of an endpoint, to the development and held-out tasks."""

    tasks: tuple[str, ...] = ()
    """Task sets, by name or as `tag:<tag>`; empty takes all. A task's `facts` are shown in a system turn."""
    parts: tuple[Part, ...] = ("dev", "heldout")
    """Parts of the task sets. What is chosen, tuned or steered reads `dev`; `heldout` is for the final table and the
    last check before a release."""
    n: int = Field(default=450, ge=1)
    """Tasks per task set and part at most."""
    n_by_set: dict[str, PositiveInt] = {}
    """Task sets with another limit than `n`."""
    modes: tuple[Mode, ...] = ("sampled", "greedy")
    """Samples at `temperature`, the likeliest continuation, or both."""
    samples: int = Field(default=1, ge=1)
    """Samples of each task in the sampled mode; from 2 on also pass@k (one of k is right) and pass^k (all k are)."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled mode: that of training, so that it measures what training rewards."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Tokens an answer may take; a longer one is cut off and scores 0."""
    thinking: bool = True
    """Whether answers may think first; false closes the thinking part in the prompt."""
    heldout_documents: int = Field(default=100, ge=0)
    """Windows of 256 held-out tokens per source for bits per byte, where there is a corpus; 0 skips it."""
    text: Annotated[str | None, InputFile()] = None
    """A plain text file to measure bits per byte on."""
    thinking_budgets: tuple[int, ...] = ()
    """Tokens of thinking to try, for the curve of accuracy against tokens in `curve.json`; one without end is added.
    Empty leaves the curve out."""
    curve_tasks: tuple[str, ...] = ("tag:reasoning",)
    """Task sets the curve is measured on, in the development part if that is evaluated."""
    endpoint: EndpointConfig | None = None
    """Ask this endpoint instead of a checkpoint; it has no bits per byte and no thinking budgets."""
