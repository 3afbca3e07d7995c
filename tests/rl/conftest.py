"""Graders and a tokenizer for tests of rollouts."""

import pytest

from tests.rl.support import ParityGraders
from tests.support_model import tiny_tokenizer


@pytest.fixture(scope="session")
def graders():
    with ParityGraders() as graders:
        yield graders


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
