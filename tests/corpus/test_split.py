"""The validation split keeps similar documents together and repeats nothing of training."""

import numpy as np

from loopline.corpus.config import DecontaminationConfig, DedupConfig
from loopline.corpus.document import make_document
from loopline.corpus.split import choose, leaked


def random_texts(count, words=200, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in rng.integers(0, 50_000, words)) for _ in range(count)]


def test_each_source_gives_its_share_and_no_cluster_is_parted():
    base = random_texts(100)
    similar = [
        text.rsplit(" ", 40)[0] + " " + other for text, other in zip(base, random_texts(100, 40, 1), strict=True)
    ]
    documents = [make_document("a", f"{n}", text) for n, text in enumerate(base)]
    documents += [make_document("a", f"copy{n}", text) for n, text in enumerate(similar)]
    documents += [make_document("b", f"{n}", text) for n, text in enumerate(random_texts(100, seed=2))]
    documents += [make_document("synthetic/x", f"{n}", f"{n}+1={n + 1}") for n in range(100)]
    chosen = choose(documents, 0.1, DedupConfig())
    parted = sum((n in chosen) != (n + 100 in chosen) for n in range(100))
    assert parted <= 2  # Bands find similarity 0.6 with probability 0.98.
    for low, high, source in ((0, 200, "a"), (200, 300, "b"), (300, 400, "synthetic/x")):
        share = sum(n in chosen for n in range(low, high)) / (high - low)
        assert 0.08 < share < 0.16, source


def test_adding_documents_of_another_source_does_not_move_the_split():
    documents = [make_document("a", f"{n}", text) for n, text in enumerate(random_texts(60))]
    more = [make_document("b", f"{n}", text) for n, text in enumerate(random_texts(60, seed=3))]
    before = choose(documents, 0.1, DedupConfig())
    after = choose(documents + more, 0.1, DedupConfig())
    assert before == {number for number in after if number < 60}


def test_a_lone_document_or_a_giant_cluster_stays_in_training():
    assert choose([make_document("a", "x", "text")], 0.1, DedupConfig()) == set()
    assert choose([make_document("synthetic/x", "x", "text")], 0.1, DedupConfig()) == set()
    assert choose([], 0.1, DedupConfig()) == set()


def test_validation_text_that_training_repeats_is_reported():
    first, second, third = random_texts(3)
    documents = [
        make_document("a", "0", first),
        make_document("a", "1", f"{first[: len(first) // 2]} {second}"),
        make_document("a", "2", third),
    ]
    assert leaked(documents, {1, 2}, DecontaminationConfig()) == {1}
    assert leaked(documents, set(), DecontaminationConfig()) == set()
