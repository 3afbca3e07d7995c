"""Texts that end a row, found as soon as their last character is written, wherever tokens divide them.

`StopTexts(tokenizer, ("\\n\\n",)).ended(ids)` looks at what the newest id added. The text is that of the sampled ids,
special tokens written out. Not covered: cutting the stop text off what a user sees (see `serve.answers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decodes(Protocol):
    """What a tokenizer must do here."""

    def decode(self, ids: Sequence[int]) -> str: ...


class StopTexts:
    """The stop texts of a row."""

    def __init__(self, tokenizer: Decodes, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        self.last = {text[-1] for text in texts}
        # A token has at least a byte, but the first may be half a character and its decoding differ at the edge.
        self.window = max(len(text.encode()) for text in texts) + 4
        self.may_end: dict[int, bool] = {}

    def ended(self, ids: Sequence[int]) -> str | None:
        """The stop text that the last id of `ids` completes; of several the one that begins first."""
        if not self._may_end(ids[-1]):
            return None
        tail = self.tokenizer.decode(ids[-self.window :])
        if not any(text in tail for text in self.texts):
            return None
        whole = self.tokenizer.decode(ids)
        found = [(place, text) for text in self.texts if (place := whole.find(text)) >= 0]
        return min(found)[1] if found else None

    def _may_end(self, token: int) -> bool:
        """Whether the token can hold the last character of a stop text; most cannot, which spares the decoding."""
        known = self.may_end.get(token)
        if known is None:
            # Twice, since decoders may drop a space at the beginning of a text.
            text = self.tokenizer.decode([token, token])
            known = self.may_end[token] = "\ufffd" in text or not text or any(last in text for last in self.last)
        return known
