"""Under which licence the weights of a checkpoint are published: read from its files, written beside converted weights.

    name = licence_of(path)              # "apache-2.0", or None where nothing says it

Not covered: reading licences nobody named by an SPDX identifier or by its first line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.base.files import write_text

FIRST_LINES = {"apache license": "apache-2.0", "mit license": "mit", "bsd 3-clause license": "bsd-3-clause"}
"""First lines of licence texts, in lower case, and the identifier of each."""
SPDX = re.compile(r"^SPDX-License-Identifier:\s*(\S+)\s*$", re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)


def licence_of(path: Path) -> str | None:
    """The identifier of the licence that a checkpoint directory names in LICENSE or in its README's front matter."""
    for file in sorted({*path.glob("LICENSE*"), *path.glob("LICENCE*")}):
        text = file.read_text(encoding="utf-8", errors="replace")
        if found := SPDX.search(text):
            return found[1]
        first = next((line.strip().lower() for line in text.splitlines() if line.strip()), "")
        if first in FIRST_LINES:
            return FIRST_LINES[first]
    readme = path / "README.md"
    front = FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace")) if readme.exists() else None
    named = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return named[1] if named else None


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
