"""Shared tasks and graders."""

import pytest

from loopline.base.files import write_json
from loopline.grading.graders import GraderSet
from loopline.model.checkpoint import save_checkpoint
from loopline.tasks.generators.config import GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import generate_tasks, write_tasks
from loopline.tasks.task import task_from_row
from tests.support import make_artifact
from tests.support_graders import DEFINITIONS
from tests.support_model import tiny_model, tiny_tokenizer

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


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """An untrained checkpoint with tasks and graders, by role."""
    root = tmp_path_factory.mktemp("evaluated")
    few = TrainCounts(arithmetic=30, word_problem=30, ordering=30, code=30, format=30, safety=40, lookup=30)
    write_tasks(GeneratorConfig(train=few, heldout=12), 1, root / "tasks")
    model = tiny_model(vocab_size=tiny_tokenizer(root / "tokenizer").vocab_size, max_position_embeddings=512)
    save_checkpoint(model, root / "tokenizer", root / "checkpoint")
    write_json(root / "graders" / "graders.json", DEFINITIONS)
    stages = {"tasks": "tasks", "checkpoint": "sft", "graders": "graders"}
    return {role: make_artifact(root / role, stage=stage) for role, stage in stages.items()}
