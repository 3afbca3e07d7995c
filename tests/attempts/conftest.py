"""A tokenizer for tests of attempts."""

import pytest

from tests.support_model import tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
