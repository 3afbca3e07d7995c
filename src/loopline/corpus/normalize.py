"""Normalization: one form of Unicode, no control characters, repaired mojibake, plain line ends.

Use: `normalize(text)`; `normalize(normalize(text)) == normalize(text)`. ASCII text without control characters is
returned as it is. Not covered: spelling, markup, and layout inside lines.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from loopline.corpus.document import Document
from loopline.corpus.funnel import Change

# Everything below the space except tab and newline, delete, C1 controls, zero-width characters, noncharacters.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\u2060\ufeff\ufffe\uffff]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK = re.compile(r"\n{4,}")
# UTF-8 read as Windows-1252: a lead byte shown as a letter, then continuation bytes shown as symbols.
_CONTINUATION = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201a"
_CONTINUATION += "\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"
_MOJIBAKE = re.compile(
    f"[\u00c2-\u00df][{_CONTINUATION}]|[\u00e0-\u00ef][{_CONTINUATION}]{{2}}|[\u00f0-\u00f4][{_CONTINUATION}]{{3}}"
)


def _repair(match: re.Match[str]) -> str:
    content = bytearray()
    for character in match.group():
        try:
            content += character.encode("cp1252")
        except UnicodeEncodeError:
            content.append(ord(character) & 0xFF)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return match.group()


def normalize(text: str) -> str:
    """Text in Unicode NFC with newline line ends, without control characters, trailing spaces and mojibake.

    Mojibake is repaired only where three or more sequences, or none but such sequences, are outside ASCII: a lone
    "Â°" may be meant.
    """
    while True:
        # What is removed counts as well when mojibake is judged, so that it may show only after a first pass.
        once = _pass(text)
        if once == text or once.isascii():
            return once
        text = once


def _pass(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\f" in text or "\v" in text:
        text = text.replace("\f", "\n").replace("\v", "\n")
    if not text.isascii():
        text = _repair_mojibake(unicodedata.normalize("NFC", text))
        text = text.replace("\u2028", "\n").replace("\u2029", "\n\n").replace("\xa0", " ").replace("\xad", "")
    text = _UNWANTED.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = _BLANK.sub("\n\n\n", _TRAILING.sub("", text))
    return text.strip("\n") if text.strip() else ""


def _repair_mojibake(text: str) -> str:
    # A repair can bring out another layer, and normal form must not depend on how often one asks.
    for _ in range(4):
        found = _MOJIBAKE.findall(text)
        foreign = sum(not character.isascii() for character in text)
        if not found or (len(found) < 3 and sum(map(len, found)) < foreign):
            break
        repaired = unicodedata.normalize("NFC", _MOJIBAKE.sub(_repair, text))
        if repaired == text:
            break
        text = repaired
    return text


def step(documents: Sequence[Document]) -> Change:
    """Normalize every document; one that becomes empty is removed."""
    change = Change()
    for number, document in enumerate(documents):
        text = normalize(document.text)
        if not text:
            change.removed[number] = "empty"
        elif text != document.text:
            change.edited[number] = document.with_text(text)
            if not document.text.isascii() and _MOJIBAKE.search(document.text) and not _MOJIBAKE.search(text):
                change.counts["mojibake repaired"] += 1
    return change
