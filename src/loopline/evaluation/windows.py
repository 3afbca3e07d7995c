"""The windows of text that an evaluation scored, in two parts: one to steer by, one for the last check.

    windows = source_windows(evaluation, "dev")      # {(source, window): (bits, bytes)}

A source's even windows are for development, its odd ones held out: both halves run through the whole text, and the same
windows fall into the same part for every checkpoint. Not covered: scoring them (see `evaluation.bits`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Literal

from loopline.base.files import read_jsonl

Windows = dict[tuple[str, int], tuple[float, int]]


def source_windows(evaluation: Path, part: Literal["dev", "heldout"]) -> Windows:
    """(source, window) -> (bits, bytes) of one part; empty where no text was scored."""
    file = evaluation / "bpb.jsonl"
    if not file.exists():
        return {}
    odd = int(part == "heldout")
    return {
        (row["source"], row["window"]): (float(row["bits"]), int(row["bytes"]))
        for row in read_jsonl(file)
        if row["window"] % 2 == odd
    }


def source_bits(windows: Windows) -> dict[str, float]:
    """Source -> bits per byte over its windows."""
    totals: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for (source, _), numbers in sorted(windows.items()):
        totals[source].append(numbers)
    return {
        source: math.fsum(bits for bits, _ in rows) / math.fsum(size for _, size in rows)
        for source, rows in totals.items()
    }
