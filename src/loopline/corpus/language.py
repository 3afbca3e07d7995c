"""Language identification of prose documents, offline, on a kilobyte of each document (py3langid).

Use: `step(documents, ("en",), confidence=0.5)`. A kilobyte is as accurate as the whole text and many times faster.
Not covered: code and synthetic documents, which pass; documents that mix languages, which go by their beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from loopline.corpus.document import Document
from loopline.corpus.funnel import Change

SAMPLE_CHARACTERS = 1000


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # Loading the model takes most of a second.

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """Language code (ISO 639-1) and confidence in [0, 1] of a text's first kilobyte."""
    language, confidence = _identifier().classify(text[:SAMPLE_CHARACTERS])
    return str(language), float(confidence)


def step(documents: Sequence[Document], languages: Sequence[str], confidence: float) -> Change:
    """Remove prose that is in another language with at least this confidence."""
    change = Change()
    if not languages:
        return change
    for number, document in enumerate(documents):
        if document.lane == "prose":
            language, certainty = identify(document.text)
            if language not in languages and certainty >= confidence:
                change.removed[number] = f"language {language}"
    return change
