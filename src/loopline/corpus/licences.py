"""Licences: strip licence headers from code and name the licence of a document that does not say its own.

Use: `strip_header(text)` gives (rest, header); `detect(text)` gives an SPDX identifier or None. Headers go first
because thousands of files share them: left in, they look like duplicates and like contamination.
Not covered: legal advice; an unnamed licence stays "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from loopline.corpus.document import Document
from loopline.corpus.funnel import Change

_LEGAL = re.compile(r"copyright|licen[cs]|all rights reserved|warrant|spdx", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+-]+)")
_COMMENT_BLOCK = re.compile(r"\s*/\*.*?\*/", re.DOTALL)
# Distinctive sentences, most specific first; spaces are flexible.
_PHRASES = [
    ("AGPL-3.0", "GNU AFFERO GENERAL PUBLIC LICENSE"),
    ("LGPL", "GNU LESSER GENERAL PUBLIC LICENSE"),
    ("GPL", "GNU GENERAL PUBLIC LICENSE"),
    ("MPL-2.0", "Mozilla Public License"),
    ("Apache-2.0", "Apache License"),
    ("PSF-2.0", "PYTHON SOFTWARE FOUNDATION LICENSE"),
    ("BSD-3-Clause", "Neither the name of"),
    ("BSD-2-Clause", "Redistribution and use in source and binary forms"),
    ("MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"),
    ("Unlicense", "This is free and unencumbered software released into the public domain"),
    ("CC-BY-SA-4.0", "Creative Commons Attribution-ShareAlike 4.0"),
    ("CC-BY-4.0", "Creative Commons Attribution 4.0"),
]
_KNOWN = [(name, re.compile(r"\s+".join(map(re.escape, phrase.split())), re.IGNORECASE)) for name, phrase in _PHRASES]


def detect(text: str) -> str | None:
    """SPDX identifier (or family, for GNU licences without a version) named in a text's first 6,000 characters."""
    head = text[:6000]
    tag = _SPDX.search(head)
    if tag:
        return tag.group(1)
    if not _LEGAL.search(head) and "permission" not in head.lower():
        return None
    return next((name for name, pattern in _KNOWN if pattern.search(head)), None)


def strip_header(text: str) -> tuple[str, str]:
    """A code file without its opening licence comment, and that comment; a shebang and coding line stay.

    Only an opening run of comment lines (`#`, `//`, `--`, `;`) or one block comment that mentions rights is taken.
    """
    keep = 0
    while text.startswith("#!", keep) or (keep < 200 and re.match(r"#.*coding[:=]", text[keep : keep + 80])):
        end = text.find("\n", keep)
        if end < 0:
            return text, ""
        keep = end + 1
    rest = text[keep:]
    block = _COMMENT_BLOCK.match(rest)
    if block:
        header = block.group()
    else:
        length = 0
        for line in rest.splitlines(keepends=True):
            if line.strip() and not line.lstrip().startswith(("#", "//", "--", ";")):
                break
            length += len(line)
        header = rest[:length]
    if not header.strip() or not _LEGAL.search(header):
        return text, ""
    return text[:keep] + rest[len(header) :].lstrip("\n"), header


def step(documents: Sequence[Document]) -> Change:
    """Strip headers from code documents and fill in unknown licences of all that are not synthetic."""
    change = Change()
    for number, document in enumerate(documents):
        if document.lane == "synthetic":
            continue
        new = document
        if document.licence == "unknown":
            found = detect(document.text)
            if found:
                new = replace(new, licence=found)
                change.counts["licence detected"] += 1
        if document.lane == "code":
            rest, header = strip_header(document.text)
            if header:
                change.cut.append((number, "licence header", header))
                new = new.with_text(rest)
                if not rest.strip():
                    change.removed[number] = "only a licence"
        if new is not document and number not in change.removed:
            change.edited[number] = new
    return change
