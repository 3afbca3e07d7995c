"""Typed settings of the corpus stages: raw documents, data engineering, data from traffic.

Nothing here imports torch or reads a document. A source's files are identity, not only its path: `RawConfig` carries a
fingerprint of their names, sizes and times, so a changed folder is a changed corpus.
Not covered: what the generators can make (see `tasks.generators.config`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from loopline.base.config import Config
from loopline.base.stage import Takes, stage
from loopline.corpus.installed import environment
from loopline.tasks.generators.config import SyntheticConfig


class PythonConfig(Config):
    """How much of the running Python installation becomes text. The caps are in megabytes (10^6 bytes) of UTF-8."""

    code_megabytes: float = Field(default=2.0, ge=0)
    """Modules of the standard library."""
    docstring_megabytes: float = Field(default=1.8, ge=0)
    """Docstrings of those modules, and the language reference."""
    readme_megabytes: float = Field(default=0.6, ge=0)
    """Descriptions of the packages Loopline needs."""
    licence_megabytes: float = Field(default=0.25, ge=0)
    """Licence files of those packages."""
    docstring_characters: int = Field(default=80, ge=1)
    """Shortest docstring worth reading."""


class SourceConfig(Config):
    """One source of your own: a folder or file of text, Markdown, HTML, code, JSONL or Parquet."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Name of the source in mixtures and reports; lower case, no slash."""
    path: Path
    """Folder (read recursively, hidden files left out) or file."""
    kind: Literal["auto", "text", "html", "code", "jsonl", "parquet"] = "auto"
    """What the files are; `auto` goes by each file's suffix and passes over suffixes it does not know."""
    licence: str = "unknown"
    """Licence of the texts; a `licence` or `license` column of a row goes before it."""
    text_field: str = "text"
    """JSONL key or Parquet column that holds the text."""
    megabytes: float | None = Field(default=None, gt=0)
    """Cap on the UTF-8 bytes taken, in megabytes; none by default."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in {"python", "synthetic"}:
            raise ValueError(f"{name!r} names a built-in source; call yours something else")
        return name


@stage("raw", run="loopline.corpus.stage:raw", takes={}, gives="documents", area=1)
class RawConfig(Config):
    """Stage `raw`: where documents come from."""

    python: PythonConfig | None = PythonConfig()
    """The default corpus, read from the running Python installation; `null` leaves it out."""
    sources: tuple[SourceConfig, ...] = ()
    """Sources of your own."""
    synthetic: SyntheticConfig | None = SyntheticConfig()
    """Generated documents (`synthetic/<task set>`); `null` leaves them out. Keep the ranges equal to
    the `settings` of generated task sets."""
    fingerprint: str = ""
    """Filled in when the config is read: what the sources hold now. Leave it out of recipes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give each its own name")
        if self.python is None and self.synthetic is None and not self.sources:
            raise ValueError("there is no source of text; list one under `sources`, or keep `python` or `synthetic`")
        object.__setattr__(self, "fingerprint", self._fingerprint())
        return self

    def _fingerprint(self) -> str:
        """sha256 over the names, sizes and modification times of the sources' files; missing ones count as such."""
        state = hashlib.sha256()
        if self.python is not None:
            state.update(environment().encode())
        for source in self.sources:
            root = source.path.expanduser()
            state.update(f"\n[{source.name}]\n".encode())
            for path in [root] if root.is_file() else sorted(root.rglob("*")):
                if path.is_file():
                    status = path.stat()
                    relative = path.name if path == root else path.relative_to(root).as_posix()
                    state.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return state.hexdigest()


class QualityRules(Config):
    """Limits on documents of one type. Shares are of words, lines or bytes; 1 or 0 switches a limit off.

    Statistics after Gopher (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024).
    """

    min_words: int = Field(default=30, ge=0)
    """Fewest space-separated words."""
    max_words: int = Field(default=200_000, ge=1)
    """Most space-separated words."""
    min_word_length: float = Field(default=3.0, ge=0)
    """Smallest mean bytes per word."""
    max_word_length: float = Field(default=12.0, ge=0)
    """Largest mean bytes per word."""
    min_alphabetic_words: float = Field(default=0.65, ge=0, le=1)
    """Smallest share of words with a letter in them."""
    min_stop_words: int = Field(default=2, ge=0, le=8)
    """Fewest distinct words out of: the, be, to, of, and, that, have, with."""
    max_symbol_words: float = Field(default=0.1, ge=0)
    """Most `#` and `...` per word."""
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that open with a bullet."""
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end with an ellipsis."""
    min_ended_lines: float = Field(default=0.05, ge=0, le=1)
    """Smallest share of lines that end with closing punctuation."""
    max_short_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest share of lines of at most 30 bytes."""
    max_line_bytes: int = Field(default=100_000, ge=1)
    """Longest line."""
    max_mean_line_bytes: float = Field(default=10_000, ge=1)
    """Largest mean bytes per line."""
    max_digits: float = Field(default=0.25, ge=0, le=1)
    """Largest share of bytes that are digits."""
    max_duplicate_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that repeat an earlier one."""
    max_duplicate_line_bytes: float = Field(default=0.2, ge=0, le=1)
    """Largest share of bytes in such lines."""
    max_duplicate_paragraph_bytes: float = Field(default=0.2, ge=0, le=1)
    """Largest share of bytes in paragraphs that repeat an earlier one."""
    max_top_2gram: float = Field(default=0.2, ge=0, le=1)
    """Largest share of bytes covered by the most frequent pair of words."""
    max_top_4gram: float = Field(default=0.16, ge=0, le=1)
    """Largest share of bytes covered by the most frequent run of four words."""
    max_duplicate_5grams: float = Field(default=0.3, ge=0, le=1)
    """Largest share of bytes covered by runs of five words that repeat an earlier one."""
    max_duplicate_10grams: float = Field(default=0.2, ge=0, le=1)
    """Largest share of bytes covered by runs of ten words that repeat an earlier one."""


PROSE = QualityRules()
# fmt: off
CODE = QualityRules(
    min_words=15, min_word_length=1.5, max_word_length=40, min_alphabetic_words=0.4, min_stop_words=0,
    max_symbol_words=1, max_bullet_lines=1, max_ellipsis_lines=1, min_ended_lines=0, max_short_lines=1,
    max_line_bytes=2000, max_mean_line_bytes=120, max_digits=0.3, max_duplicate_lines=0.6,
    max_duplicate_line_bytes=0.5, max_duplicate_paragraph_bytes=0.4, max_top_2gram=0.3, max_top_4gram=0.3,
    max_duplicate_5grams=0.75, max_duplicate_10grams=0.6,
)
# fmt: on


class DedupConfig(Config):
    """Removing what the corpus already says elsewhere."""

    paragraph_bytes: int = Field(default=60, ge=1)
    """Shortest paragraph that is removed from prose when an earlier document has it."""
    line_bytes: int = Field(default=24, ge=1)
    """Shortest line that is removed from prose when too many documents have it."""
    line_documents: int = Field(default=6, ge=1)
    """A line in more documents than this is boilerplate (Llama 3's rule)."""
    min_document_bytes: int = Field(default=100, ge=1)
    """A document cut below this is removed whole."""
    shingle: int = Field(default=5, ge=1, le=13)
    """Words per shingle of the near-duplicate search."""
    similarity: float = Field(default=0.7, gt=0, le=1)
    """Estimated Jaccard similarity from which two documents are near duplicates."""
    cluster_similarity: float = Field(default=0.4, gt=0, le=1)
    """Estimated similarity from which two survivors fall on the same side of the validation split."""


class DecontaminationConfig(Config):
    """Keeping held-out tasks and the validation split out of training."""

    ngram: int = Field(default=13, ge=5, le=50)
    """Words in a row that, shared with a held-out item, count as contamination."""
    shortest: int = Field(default=5, ge=2)
    """Fewest symbols (words and punctuation) of an item that is searched for as a whole."""
    margin: int = Field(default=200, ge=0)
    """Characters cut from natural text on either side of a match."""
    max_cut: float = Field(default=0.5, ge=0, le=1)
    """A document that would lose more than this share is removed whole."""
    max_validation_overlap: float = Field(default=0.2, ge=0, le=1)
    """A validation document whose n-grams occur in training to a larger share is removed."""


class TokenizerConfig(Config):
    """The byte-level BPE tokenizer."""

    vocab_size: int = Field(default=1024, ge=266, le=262_144)
    """Tokens including ten special ones and 256 bytes. Above 65,536 the shards take four bytes per token."""
    train_megabytes: float = Field(default=6.0, gt=0)
    """Text the merges are learned from, sampled by mixture weight."""
    task_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of that text taken from the training tasks, so that chats compress well."""


@stage(
    "data",
    run="loopline.corpus.stage:data",
    takes={"raw": Takes("documents"), "tasks": Takes("tasks")},
    gives="corpus",
    area=2,
)
class DataConfig(Config):
    """Stage `data`: from documents to a tokenizer and token shards."""

    languages: tuple[str, ...] = ("en",)
    """Languages kept among prose documents (ISO 639-1); empty keeps all."""
    language_confidence: float = Field(default=0.5, ge=0, le=1)
    """Another language is believed only with at least this confidence."""
    prose: QualityRules = PROSE
    """Limits for prose."""
    code: QualityRules = CODE
    """Limits for code."""
    pii: bool = True
    """Replace addresses, phone numbers, cards, keys and the like by placeholders."""
    dedup: DedupConfig = DedupConfig()
    """Duplicates."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """Held-out tasks and validation."""
    heldout_share: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of each source's clusters kept for validation."""
    synthetic_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the mixture for synthetic sources when `weights` does not say otherwise."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Mixture weights by source (`python/code`) or group (`python`, `synthetic`, `notes`); a group's weight is shared
    out by tokens. Sources not named get no weight once any is named."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    samples: int = Field(default=3, ge=0, le=50)
    """Examples of what each step removed, kept in funnel.json."""

    @field_validator("weights")
    @classmethod
    def _weights(cls, weights: dict[str, float]) -> dict[str, float]:
        bad = sorted(name for name, value in weights.items() if value < 0)
        if bad:
            raise ValueError(f"the weight of {bad[0]!r} is negative; give zero to leave a source out")
        if weights and sum(weights.values()) <= 0:
            raise ValueError("all weights are zero; give at least one source a positive weight")
        return weights


@stage(
    "traffic_data",
    run="loopline.corpus.stage:traffic_data",
    takes={"traffic": Takes("traffic"), "tasks": Takes("tasks")},
    gives="rows",
    area=2,
)
class TrafficDataConfig(Config):
    """Stage `traffic_data`: consented production traffic becomes fine-tuning and preference rows."""

    good: tuple[str, ...] = ("thumbs_up", "accepted", "copied")
    """Feedback names that make an answer an example to imitate (unless their value is false or not above zero)."""
    bad: tuple[str, ...] = ("thumbs_down", "rejected", "regenerated")
    """Feedback names that make an answer one to avoid."""
    correction: tuple[str, ...] = ("correction", "edited")
    """Feedback names whose value is the text the answer should have been."""
    max_characters: int = Field(default=20_000, ge=1)
    """Longest conversation kept."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """Keeping held-out tasks out."""
    samples: int = Field(default=3, ge=0, le=50)
    """Examples of what each step removed, kept in funnel.json."""
