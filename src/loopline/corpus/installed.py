"""Loopline's own installed dependencies: the packages whose descriptions and licences every installation has.

Use: `dependencies()` gives distribution by normalized name. Packages that merely lie beside them (test tools, another
project's) stay out, so that installing one does not change the default corpus.

Not covered: extras; what only they need is not part of the corpus.
"""

from __future__ import annotations

import importlib.metadata
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "loopline"


def dependencies(root: str = PROJECT) -> dict[str, importlib.metadata.Distribution]:
    """Everything `root` needs, directly or not, that is installed; by name, sorted, `root` itself left out.

    Where `root` is not installed as a distribution (its sources are on the path), all distributions are listed.
    """
    try:
        pending = list(importlib.metadata.distribution(root).requires or [])
    except importlib.metadata.PackageNotFoundError:
        everything = {canonicalize_name(item.name): item for item in importlib.metadata.distributions() if item.name}
        return {name: everything[name] for name in sorted(everything)}
    found: dict[str, importlib.metadata.Distribution] = {}
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # Vendored or optional for this platform: what is not here cannot be read.
        pending += found[name].requires or []
    return {name: found[name] for name in sorted(found)}


def environment() -> str:
    """What the default corpus depends on: the Python version and every dependency's, one a line."""
    versions = [f"{name}=={item.version}" for name, item in dependencies().items()]
    return "\n".join([f"python=={sys.version.split()[0]}", *versions])
