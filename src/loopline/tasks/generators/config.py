"""Settings of the synthetic generators: how hard the instances are, how many of them, how many bytes of documents.

Not covered: the seed, which the stage passes beside the config.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from loopline.base.config import Config

Family = Literal["arithmetic", "word_problem", "ordering", "code", "format", "safety", "lookup"]


class GeneratorSettings(Config):
    """What decides a generator's instances, but for the seed. Sets and documents that share them share no instance."""

    heldout_percent: int = Field(default=12, ge=1, le=40)
    """Share of the instance space, by hash of the instance, that is reserved for the held-out part; as much again is
    for the dev part."""
    max_terms: int = Field(default=4, ge=3, le=6)
    """Most numbers in one arithmetic chain; held-out chains have at least three."""
    max_value: int = Field(default=30, ge=9, le=99)
    """Largest number written in an arithmetic or word problem."""
    max_result: int = Field(default=60, ge=18, le=400)
    """Largest intermediate or final result; none is ever below zero."""


class DocumentBytes(Config):
    """UTF-8 bytes of pretraining documents per source; 0 leaves a source out."""

    arithmetic: int = Field(default=900_000, ge=0)
    """Facts and chains, one per line."""
    word_problem: int = Field(default=700_000, ge=0)
    """Stories with worked solutions."""
    ordering: int = Field(default=450_000, ge=0)
    """Comparisons with their conclusion."""
    code: int = Field(default=400_000, ge=0)
    """Short functions with docstrings."""
    safety: int = Field(default=250_000, ge=0)
    """Short texts on when to help and when to refuse."""
    lookup: int = Field(default=400_000, ge=0)
    """Fact sheets with questions and answers."""


class SyntheticConfig(GeneratorSettings):
    """Pretraining documents on the generators' subjects."""

    documents: DocumentBytes = DocumentBytes()
    """Bytes of documents per source."""


class TrainCounts(Config):
    """Training instances per task set; 0 leaves a set out of the training part."""

    arithmetic: int = Field(default=20000, ge=0)
    """Chains of additions and subtractions."""
    word_problem: int = Field(default=10000, ge=0)
    """Two- and three-step stories."""
    ordering: int = Field(default=8000, ge=0)
    """Comparisons of three or four people."""
    code: int = Field(default=4000, ge=0)
    """One-line functions with tests."""
    format: int = Field(default=3000, ge=0)
    """Instructions whose fulfilment a program can check."""
    safety: int = Field(default=3000, ge=0)
    """Requests to help with or to refuse."""
    lookup: int = Field(default=4000, ge=0)
    """Questions over a document set."""


class GeneratorConfig(SyntheticConfig):
    """All seven generated sets at once, each under its generator's name."""

    train: TrainCounts = TrainCounts()
    """Training instances per task set."""
    heldout: int = Field(default=450, ge=1)
    """Held-out instances per task set, and as many for the dev part; 450 gives a 95% interval of at most 4.6 points
    either side."""
    heldout_by_set: dict[Family, PositiveInt] = {}
    """Task sets with another count than `heldout`: safety, say, of which only half are to be refused."""
