"""Dataset cards: a README.md with the metadata block that dataset hubs read, and the tables a reader wants.

    dataset_card("Accepted answers", {"Rows": [("kept", 12)]}, {"size_categories": ["n<1K"]})

Not covered: licences and languages, which only the data's owner knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Section = str | Sequence[tuple[str, Any]]
"""A paragraph, or the rows of a table of two columns."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def size_category(rows: int) -> str:
    """The hub's category of a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "n>10M")


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Least, quartiles, 95th percentile and greatest of the values, each one of them (nearest rank)."""
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {"min": 0.0, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}


def dataset_card(title: str, sections: Mapping[str, Section], metadata: Mapping[str, Any]) -> str:
    """The text of README.md."""
    head = {"task_categories": ["text-generation"], "tags": ["post-training"], **metadata}
    lines = ["---", yaml.safe_dump(head, sort_keys=True).rstrip("\n"), "---", "", f"# {title}", ""]
    for name, content in sections.items():
        if not content:
            continue
        lines += [f"## {name}", ""]
        if isinstance(content, str):
            lines.append(content)
        else:
            lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in content)]
        lines.append("")
    return "\n".join(lines)
