"""Under which licence the weights of a checkpoint are published: read from its files, written beside converted weights.

    name = licence_of(path)              # "apache-2.0", or None where nothing says it

Not covered: which terms a licence sets; whether two licences go together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.base.files import read_json, write_text

TITLES = {
    "apache-2.0": r"apache license\W+version 2",
    "mit": r"\bmit license\b",
    "bsd-3-clause": r"bsd 3-clause",
    "cc-by-4.0": r"attribution 4\.0 international",
}
"""Identifiers, and what the head of each licence's text says in lower case."""
OTHER = "other"
"""What model cards call a licence whose text is there and whose identifier is unknown."""
HEAD = 2000
"""Characters of a licence's text that are searched for its title."""
SPDX = re.compile(r"^SPDX-License-Identifier:\s*(\S+)\s*$", re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
LICENCE_KEY = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)


def licence_file(path: Path) -> Path | None:
    """The file of a checkpoint directory that holds its licence's text."""
    return next(iter(sorted(path.glob("LICEN[CS]E*"))), None)


def licence_of(path: Path) -> str | None:
    """The identifier of the licence that a checkpoint directory names; `other` for an unknown text, None for nothing.

    Read, in this order, from an SPDX line in the licence's file, the front matter of the model card, `license` in
    config.json, and the title in the licence's text.
    """
    file = licence_file(path)
    text = file.read_text(encoding="utf-8", errors="replace")[:HEAD] if file else ""
    if found := SPDX.search(text):
        return found[1].lower()
    for card in (path / "README.md", path / "MODEL_CARD.md"):
        front = FRONT_MATTER.search(card.read_text(encoding="utf-8", errors="replace")) if card.exists() else None
        if front and (found := LICENCE_KEY.search(front[1])):
            return found[1].lower()
    config = path / "config.json"
    if config.exists() and (stated := read_json(config).get("license")):
        return str(stated).lower()
    if file is None:
        return None
    return next((name for name, title in TITLES.items() if re.search(title, text.lower())), OTHER)


def write_licence(out: Path, metadata: Mapping[str, Any]) -> None:
    """Write `LICENSE` from what a GGUF file's `general.` metadata says of licence and origin; nothing where silent."""
    licence = metadata.get("general.license")
    if not licence:
        return
    lines = [f"SPDX-License-Identifier: {licence}"]
    for key, label in (("name", "Model"), ("organization", "By"), ("license.link", "Terms"), ("source.url", "Source")):
        if value := metadata.get(f"general.{key}"):
            lines.append(f"{label}: {value}")
    write_text(out / "LICENSE", "\n".join(lines) + "\n")
