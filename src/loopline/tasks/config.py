"""Settings of task sets, and of how data files are read. Imports no torch.

    tasks:
      math: {file: gsm8k/train.jsonl, heldout: gsm8k/test.jsonl, tags: [reasoning]}
      sums: {generator: arithmetic, sizes: {train: 5000}}
      bases: {package: "reasoning_gym:base_conversion", sizes: {train: 2000, heldout: 200}}

Not covered: what the graders named here do (see `loopline.grading`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from loopline.base.config import Config, InputFile
from loopline.base.stage import stage

FORMATS = ("gsm8k", "math", "humaneval", "mbpp", "arc", "mmlu", "ifeval", "chat", "columns")
"""The known forms of task files; `chat` also reads OpenAI's fine-tuning rows, `columns` any prompt and answer."""
READY = (
    "final_answer", "steps", "format_check", "refusal", "code_tests",
    "gsm8k", "math", "choice", "instructions", "reasoning_gym",
)  # fmt: skip
"""Graders that come with the project, by name; each is the definition {"type": name}."""


class DataConfig(Config):
    """How a data file is read; see `tasks.layouts` for the columns."""

    columns: dict[str, str] = {}
    """Wanted column -> the file's column, as in `{prompt: question, completion: answer}`."""
    ignore: tuple[str, ...] = ()
    """Columns left out on purpose that would otherwise be missed (`context`, `history`, ...)."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many rows."""
    template: str = "{prompt}"
    """What a prompt given as text is put into."""
    system: str = ""
    """A system turn before prompts that have none."""
    empty: Literal["refuse", "drop"] = "refuse"
    """What becomes of rows with an empty completion."""

    @model_validator(mode="after")
    def _prompt_is_shown(self) -> DataConfig:
        if "{prompt}" not in self.template:
            raise ValueError("template must hold {prompt}: write for example 'Question: {prompt}'")
        return self


class PartSizes(Config):
    """Most rows of each part; empty takes what there is, or the default of a generator or package."""

    train: int | None = Field(default=None, ge=0)
    """Rows to train on."""
    dev: int | None = Field(default=None, ge=0)
    """Rows to tune, choose and steer by; of a generator or package as many as are held out."""
    heldout: int | None = Field(default=None, ge=0)
    """Rows for the final table and the release's last check only."""


class TaskSetConfig(Config):
    """One task set: where its rows come from, how a row becomes a prompt, its grader, parts and tags."""

    file: Annotated[str | None, InputFile()] = None
    """Rows to divide, or the training rows where `heldout` names a file: .jsonl, .json, .csv or .parquet, also .gz."""
    generator: str | None = None
    """A generator by name, or as `package.module:object`, in place of a file."""
    package: str | None = None
    """A data set of an installed package in place of a file: `reasoning_gym:<data set>`."""
    settings: dict[str, JsonValue] = {}
    """Settings of the generator or the package's data set, such as its difficulty."""
    sizes: PartSizes = PartSizes()
    """Rows of each part."""
    heldout: float = Field(default=0.1, ge=0, le=1)
    """Share of the file that is held out, by hash of the prompt; in a recipe also the name of a file."""
    heldout_file: Annotated[str | None, InputFile()] = None
    """The held-out rows; what `heldout` becomes when it names a file."""
    dev: float = Field(default=0.1, ge=0, le=1)
    """Share of the rows that are not held out which is for development; in a recipe also the name of a file."""
    dev_file: Annotated[str | None, InputFile()] = None
    """The development rows; what `dev` becomes when it names a file."""
    overlap: Literal["refuse", "drop"] = "refuse"
    """What becomes of rows of a file that another file holds out: the run is refused, or they are left out."""
    format: Literal[FORMATS] | None = None  # type: ignore[valid-type]
    """The form of the rows; empty looks at the columns."""
    prompt: str | None = None
    """Column of the prompt, for forms that are not known."""
    answer: str | None = None
    """Column of the reference answer."""
    demonstrate_answers: bool = False
    """Whether a reference answer alone is a written answer to learn from (style `answer`), where there is none."""
    messages: str | None = None
    """Column of a prompt given as chat messages."""
    template: str | None = None
    """What the prompt is put into, with {prompt}; empty takes that of the form."""
    system: str = ""
    """A system turn before prompts that have none."""
    tools: tuple[dict[str, JsonValue], ...] = ()
    """Tools that the model may call, as OpenAI tool schemas."""
    grader: str | dict[str, JsonValue] | None = None
    """Name of a ready grader or of one defined under `graders`, or a definition; in a recipe also a .json or .py file.
    Empty takes that of the form or generator."""
    grader_file: Annotated[str | None, InputFile()] = None
    """A grader's .json or .py file; what `grader` becomes when it names one."""
    tags: tuple[str, ...] = ()
    """What the set is good for, such as `reasoning`, `must_refuse`, `must_answer`, `tools`, or words of your own."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many rows of each file."""

    @model_validator(mode="before")
    @classmethod
    def _files(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = dict(given)
        for name in ("heldout", "dev"):
            if isinstance(given.get(name), str):
                given[f"{name}_file"] = given.pop(name)
        if isinstance(given.get("grader"), str) and given["grader"].endswith((".json", ".py")):
            given["grader_file"] = given.pop("grader")
        return given

    @model_validator(mode="after")
    def _check(self) -> TaskSetConfig:
        sources = [name for name in ("file", "generator", "package") if getattr(self, name) is not None]
        if len(sources) != 1 and not (not sources and self.heldout_file):
            raise ValueError("give exactly one of file, generator and package (or only heldout: FILE)")
        if self.file is None and self.dev_file is None and self.heldout_file is None and self.format is not None:
            raise ValueError("format says how a file is read, but there is no file")
        if sources != ["file"] and self.settings and not sources:
            raise ValueError("settings are for a generator or package")
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError("template must hold {prompt}: write for example 'Question: {prompt}'")
        if self.messages is not None and self.prompt is not None:
            raise ValueError("give either prompt or messages, not both")
        return self


@stage("tasks", run="loopline.tasks.stage:tasks", takes={}, gives="tasks", area=6)
class TasksConfig(Config):
    """The recipe's task sets, each in a training, a development and a held-out part that share no task."""

    sets: dict[str, TaskSetConfig] = {}
    """Name -> task set."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """A generator's name in place of a set's settings: `sums: arithmetic`."""
        if isinstance(given, dict) and isinstance(given.get("sets"), dict):
            sets = {name: {"generator": one} if isinstance(one, str) else one for name, one in given["sets"].items()}
            return {**given, "sets": sets}
        return given

    @model_validator(mode="after")
    def _names(self) -> TasksConfig:
        for name in self.sets:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"a task set cannot be called {name!r}: use letters, digits, _ and -")
        return self
