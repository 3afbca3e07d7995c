"""The switches and sizes of a harness program. Imports no torch.

A harness is a program around a fixed policy; each field turns on, or sizes, one mechanism of it, so that a search can
add mechanisms one at a time and say which one helped. The default is the plain tool loop. Not covered: weights and
sampling settings, which belong to the policy and to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from loopline.base.config import Config
from loopline.base.files import read_json, write_json


class HarnessConfig(Config):
    """One harness."""

    system_prompt: str = ""
    """Text of a system turn before the conversation; empty for none."""
    offer_tools: bool = False
    """Show the environment's tools to the policy, in the place that its chat template has for them; a policy that was
    trained on these tools does not need them."""
    max_turns: int = Field(default=8, ge=1, le=32)
    """Assistant turns at most; a call in the last turn is not answered."""
    top_k: int = Field(default=1, ge=1, le=20)
    """Documents each search returns."""
    score_floor: float = Field(default=0.0, ge=0, le=1)
    """Leave out search results that score below this share of the best one; 0 keeps all `top_k`."""
    bootstrap_search: bool = False
    """Search with the user's own words before the first turn and put the result into a system turn as notes
    (the environment bootstrap of Meta-Harness, arXiv:2603.28052)."""
    repair_malformed: bool = False
    """Read tool calls leniently: unclosed braces, single quotes, missing end tag, a wrongly named only argument."""
    route_unknown_tool: bool = False
    """Run the tool whose name is nearest to an unknown one, or the one whose arguments fit."""
    retry_empty_search: bool = False
    """When a search finds nothing or a call fails, search with the user's own words instead."""
    auto_calculate: bool = False
    """Where a written step `a*b=c` is wrong, put the right value after `=` and let the policy go on from there."""
    loop_guard: bool = False
    """When a call repeats an earlier one, give the best documents for the user's own words instead of the same text."""
    keep_tool_results: int = Field(default=0, ge=0, le=32)
    """Keep the text of this many latest tool results and cut older ones from the context; 0 keeps all."""
    vote: int = Field(default=1, ge=1, le=32)
    """Attempts per task; the answer most of them give wins, the earliest on a tie (self-consistency,
    Wang et al. 2022, arXiv:2203.11171)."""
    vote_temperature: float = Field(default=0.7, gt=0, le=2)
    """Temperature of the attempts when voting and the caller asked for greedy decoding."""
    max_context_tokens: int = Field(default=32_768, ge=16)
    """An attempt whose context reaches this many tokens ends there; never more than the model leaves free for a
    turn."""

    def within(self, context: int, max_new_tokens: int) -> HarnessConfig:
        """The same harness for a model of `context` tokens."""
        most = max(16, context - max_new_tokens)
        return self.model_copy(update={"max_context_tokens": min(self.max_context_tokens, most)})

    def limits(self) -> HarnessConfig:
        """The plain tool loop under this harness's limits: what its oracle is measured with."""
        return HarnessConfig(max_turns=self.max_turns, max_context_tokens=self.max_context_tokens)


def write_harness(path: Path, config: HarnessConfig, environment: str | None, tools: Iterable[str] = ()) -> None:
    """harness.json: the harness's fields, the environment whose tools it runs, and their names where known."""
    named = sorted(tools)
    write_json(path, {"config": config.model_dump(), "environment": environment, **({"tools": named} if named else {})})


def read_harness(path: Path) -> tuple[HarnessConfig, str | None]:
    """(harness, environment) of a harness.json; a file with the fields alone names no environment."""
    value = read_json(path)
    return HarnessConfig.model_validate(value.get("config", value)), value.get("environment")
