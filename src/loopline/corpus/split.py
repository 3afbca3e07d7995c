"""The validation split: whole clusters of similar documents, never half of one, and nothing that training repeats.

Use: `choose(documents, share, config)` gives the numbers of the held-out documents; `leaked(...)` those of them whose
text occurs in training after all. Each source keeps at least one cluster for validation when it has two.
Not covered: held-out tasks (see `decontaminate`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from loopline.corpus import neardup
from loopline.corpus.config import DecontaminationConfig, DedupConfig
from loopline.corpus.document import Document
from loopline.text.index import TextIndex

# Bands of four bins find pairs of similarity 0.5 with probability 0.84; similar texts must not be parted.
_ROWS = 4


def choose(documents: Sequence[Document], share: float, config: DedupConfig) -> set[int]:
    """Numbers of the documents of the validation split.

    Clusters are taken in the order of the hash of their first id until a source has `share` of its bytes; one that
    would take more than half of its source is passed over. A synthetic document is a cluster of its own.
    """
    natural = [number for number, document in enumerate(documents) if document.lane != "synthetic"]
    table = neardup.signatures([documents[number].text for number in natural], config.shingle)
    group = neardup.clusters(table, config.cluster_similarity, rows=_ROWS)
    members: dict[int, list[int]] = {}
    for row, number in enumerate(natural):
        members.setdefault(natural[int(group[row])], []).append(number)
    for number, document in enumerate(documents):
        if document.lane == "synthetic":
            members[number] = [number]

    size = [len(document.text) for document in documents]
    total: dict[str, int] = {}
    for number, document in enumerate(documents):
        total[document.source] = total.get(document.source, 0) + size[number]
    taken = dict.fromkeys(total, 0)
    chosen: set[int] = set()
    for first in sorted(members, key=lambda number: hashlib.sha256(documents[number].id.encode()).digest()):
        source = documents[first].source
        weight = sum(size[number] for number in members[first])
        if taken[source] < share * total[source] and weight + taken[source] <= total[source] / 2:
            taken[source] += weight
            chosen.update(members[first])
    return chosen


def leaked(documents: Sequence[Document], chosen: set[int], config: DecontaminationConfig) -> set[int]:
    """Natural documents among `chosen` whose n-grams occur in training documents to more than the allowed share."""
    natural = [number for number, document in enumerate(documents) if document.lane != "synthetic"]
    held = [number for number in natural if number in chosen]
    if not held:
        return set()
    training = [(documents[number].id, documents[number].text) for number in natural if number not in chosen]
    overlap = TextIndex(training, config.ngram, config.shortest, whole=False).overlap(
        [documents[number].text for number in held]
    )
    return {number for number, part in zip(held, overlap, strict=True) if part > config.max_validation_overlap}
