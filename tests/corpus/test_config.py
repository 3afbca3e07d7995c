"""Configs: a changed folder is a changed corpus, and mistakes are refused with the fix."""

import os

import pytest
from pydantic import ValidationError

from loopline.base.config import identity_of, sha256_of
from loopline.corpus.config import DataConfig, RawConfig


def identity(config):
    return sha256_of(identity_of(config))


def test_identity_follows_the_files_of_a_source(tmp_path):
    def config():
        return RawConfig.model_validate({"python": None, "sources": [{"name": "mine", "path": tmp_path}]})

    missing = identity_text(config())
    (tmp_path / "a.txt").write_text("one")
    first = identity_text(config())
    assert first == identity_text(config())
    (tmp_path / "a.txt").write_text("two")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    second = identity_text(config())
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert len({missing, first, second, identity_text(config())}) == 4


def identity_text(config):
    return config.fingerprint


def test_a_written_fingerprint_is_ignored():
    assert RawConfig(fingerprint="x") == RawConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": None, "synthetic": None}, "there is no source of text"),
        ({"sources": [{"name": "python", "path": "x"}]}, "names a built-in source"),
        ({"sources": [{"name": "a/b", "path": "x"}]}, "should match pattern"),
        ({"sources": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "two sources are called 'a'"),
        ({"sauces": []}, "sauces"),
    ],
)
def test_mistakes_in_raw(changes, message):
    with pytest.raises(ValidationError, match=message):
        RawConfig.model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"a": -1}}, "weight of 'a' is negative"),
        ({"weights": {"a": 0}}, "all weights are zero"),
        ({"tokenizer": {"vocab_size": 100}}, "greater than or equal to 266"),
        ({"heldout_share": 0}, "greater than 0"),
    ],
)
def test_mistakes_in_data(changes, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(changes)
