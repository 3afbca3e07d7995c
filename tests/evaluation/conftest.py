"""Shared tasks and graders."""

import pytest

from loopline.grading.graders import GraderSet
from loopline.tasks.generators.config import GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import generate_tasks
from loopline.tasks.task import task_from_row
from tests.support_graders import DEFINITIONS

COUNTS = TrainCounts(arithmetic=60, word_problem=60, ordering=60, code=60, format=60, safety=80, lookup=60)


@pytest.fixture(scope="session")
def tasks():
    """Sixty generated tasks of every task set."""
    return [task_from_row(row) for row in generate_tasks(GeneratorConfig(train=COUNTS, heldout=20), 3).train]


@pytest.fixture(scope="session")
def graders():
    """The default graders."""
    with GraderSet.from_defs(DEFINITIONS) as graders:
        yield graders
