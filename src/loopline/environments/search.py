"""Questions that need a document: an environment over the `documents.jsonl` of a tasks artifact.

    environment = SearchEnvironment.from_tasks(tasks_directory, graders, part="train")
    environment.call(environment.reset(task), "search", {"query": "blue lamp"}).text

Tools: `search(query)` returns the texts of the best documents by BM25; `calculator(expression)` is exact
arithmetic. The documents of one part only are visible, so held-out facts cannot leak into training rollouts.
Not covered: documents longer than a paragraph, the web.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, to_json
from loopline.chat.forms.form import Call
from loopline.chat.tools import CallError, Tool, ToolResult, as_plain_text
from loopline.environments.bm25 import BM25
from loopline.environments.calculator import CalculatorError, calculate
from loopline.environments.environment import EpisodeState, OutcomeGraders, call_tool
from loopline.grading.grade import Grade, Sample
from loopline.inference.trajectory import Trajectory
from loopline.tasks.task import Task

NOTHING = "No documents found."


class SearchEnvironment:
    """Search and arithmetic over a fixed set of short documents."""

    name = "search"

    def __init__(self, documents: Sequence[Mapping[str, Any]], graders: OutcomeGraders | None, top_k: int = 1) -> None:
        """`documents` are rows with title and text; `top_k` is how many texts a search returns.

        `graders` may be None where nothing is graded, as in service. Raises `UserError` without documents.
        """
        if not documents:
            raise UserError("The search environment has no documents", "fill documents.jsonl of the tasks artifact")
        # Order must not depend on how the file was written.
        self.documents = sorted(documents, key=lambda row: str(row["id"]))
        self.graders = graders
        self.top_k = top_k
        self.index = BM25([(str(row["title"]), str(row["text"])) for row in self.documents])
        self.world = hashlib.sha256(to_json([dict(row) for row in self.documents]).encode("utf-8")).hexdigest()
        self._tools = {tool.name: tool for tool in (self._search_tool(), CALCULATOR)}

    @classmethod
    def from_tasks(
        cls, tasks: Path, graders: OutcomeGraders | None, part: str | None = None, top_k: int = 1
    ) -> SearchEnvironment:
        """The environment of a tasks artifact; `part` keeps that part's documents and those that name no part."""
        rows = [row for row in read_jsonl(tasks / "documents.jsonl") if part is None or row.get("part", part) == part]
        if not rows:
            raise UserError(
                f"{tasks / 'documents.jsonl'} has no documents of the part {part!r}",
                "give the task sets their documents, or name a part that has some",
            )
        return cls(rows, graders, top_k)

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._tools

    def reset(self, task: Task) -> EpisodeState:
        return EpisodeState(task_id=task.id, world=self.world)

    def finder(self, question: str) -> Call | None:
        return Call("search", {"query": question})

    def call(self, state: EpisodeState, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return call_tool(self._tools, state, name, arguments)

    def grade(self, tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> list[Grade]:
        if self.graders is None:
            raise UserError("This search environment was built without graders", "pass graders to grade outcomes")
        return self.graders.grade(
            [
                Sample(task=task, text=run.answer, finish=run.finish, messages=tuple(run.messages()))
                for task, run in zip(tasks, trajectories, strict=True)
            ]
        )

    def search(self, query: str, k: int | None = None, floor: float = 0.0) -> ToolResult:
        """The texts of the best `k` documents whose score reaches `floor` times the best one's, joined by spaces."""
        hits = self.index.search(query, k or self.top_k)
        if not hits:
            return ToolResult(text=NOTHING, empty=True)
        kept = [number for number, score in hits if score >= floor * hits[0][1]]
        return ToolResult(text=" ".join(as_plain_text(str(self.documents[number]["text"])) for number in kept))

    def _search_tool(self) -> Tool:
        def run(arguments: Mapping[str, Any]) -> ToolResult:
            return self.search(arguments["query"], arguments.get("k"), arguments.get("floor", 0.0))

        return Tool(
            name="search",
            description="Find documents about the query.",
            parameters={
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "k": {"type": "integer"},
                    "floor": {"type": "number"},
                },
                "required": ["query"],
            },
            function=run,
        )


def _calculator(arguments: Mapping[str, Any]) -> ToolResult:
    try:
        return ToolResult(text=calculate(arguments["expression"]))
    except CalculatorError as error:
        raise CallError(str(error)) from error


CALCULATOR = Tool(
    name="calculator",
    description="Work out an arithmetic expression.",
    parameters={"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    function=_calculator,
)
