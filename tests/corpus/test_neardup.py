"""One-permutation MinHash against exact Jaccard similarity, and clusters with their best copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.corpus.config import DedupConfig, PythonConfig
from loopline.corpus.document import make_document
from loopline.corpus.neardup import BINS, agreement, clusters, shingles, signatures, step
from loopline.corpus.python_source import read_python


def jaccard(texts):
    keys, document = shingles(texts, 5)
    first, second = (set(keys[document == n].tolist()) for n in (0, 1))
    return len(first & second) / max(1, len(first | second))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(100, 600), st.floats(0, 0.25))
def test_the_estimate_is_near_the_exact_similarity(seed, words, rate):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 5000, words)
    other = np.where(rng.random(words) < rate, rng.integers(0, 5000, words), text)
    pair = [" ".join(map(str, text)), " ".join(map(str, other))]
    table = signatures(pair)
    # Five standard deviations of a mean of 112 bins.
    assert abs(agreement(table[0], table[1]) - jaccard(pair)) < 5 * 0.5 / np.sqrt(BINS)


def test_the_estimate_has_no_bias():
    rng = np.random.default_rng(0)
    errors = []
    for rate in np.linspace(0, 0.2, 80):
        text = rng.integers(0, 5000, 60)  # Fewer shingles than bins: densification does half the work.
        other = np.where(rng.random(60) < rate, rng.integers(0, 5000, 60), text)
        pair = [" ".join(map(str, text)), " ".join(map(str, other))]
        table = signatures(pair)
        errors.append(agreement(table[0], table[1]) - jaccard(pair))
    assert abs(np.mean(errors)) < 0.03


def test_planted_copies_of_real_modules_are_found_and_nothing_else():
    documents = read_python(
        PythonConfig(code_megabytes=1.5, docstring_megabytes=0, readme_megabytes=0, licence_megabytes=0)
    )
    originals = [document.text for document in documents if len(document.text) > 3000]
    rng = np.random.default_rng(1)
    copies = []
    for text in originals:
        words = text.split(" ")
        for place in rng.choice(len(words), max(1, len(words) // 300), replace=False):
            words[place] = "CHANGED"
        copies.append(" ".join(words))
    texts = originals + copies
    table = signatures(texts)
    group = clusters(table, 0.7)
    similar = [n for n in range(len(originals)) if jaccard([originals[n], copies[n]]) >= 0.8]
    assert len(similar) > 30
    assert sum(group[n] == group[n + len(originals)] for n in similar) >= 0.95 * len(similar)
    for number in range(len(texts)):
        leader = group[number]
        partner = number % len(originals)
        if leader % len(originals) != partner:
            assert jaccard([texts[number], texts[leader]]) > 0.5


def test_case_and_punctuation_do_not_hide_a_copy_and_the_longest_copy_stays():
    text = "one two three four five six seven eight nine ten eleven twelve " * 3 + " ".join(map(str, range(200)))
    documents = [
        make_document("s", "a", text),
        make_document("s", "b", text.upper().replace(" ", ", ") + " and an end"),
        make_document("s", "c", "short"),
        make_document("s", "d", "short"),
        make_document("synthetic/x", "e", text),
    ]
    assert step(documents, DedupConfig()).removed == {0: "near duplicate"}


def test_no_texts_and_texts_without_shingles():
    assert signatures([]).shape == (0, BINS)
    assert clusters(signatures(["a", "", "a"]), 0.7).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("similarity", "equal"), [(0.7, 79), (0.5, 56), (0.9, 101)])
def test_texts_are_near_duplicates_from_the_similarity_asked_for(similarity, equal):
    # Of 112 bins the smallest number that reaches the share; the equal ones fill whole bands, so the pair is met.
    table = np.arange(2 * BINS, dtype=np.uint64).reshape(2, BINS)
    table[1, :equal] = table[0, :equal]
    assert list(clusters(table, similarity)) == [0, 0]
    table[1, equal - 1] += np.uint64(9999)
    assert list(clusters(table, similarity)) == [0, 1]


def test_the_step_removes_what_the_settings_call_near():
    words = [f"word{n}" for n in range(400)]
    # Every changed word breaks five shingles: 12 changes leave about 336 of 456 shingles shared, a similarity of 0.74.
    changed = [f"other{n}" if n % 33 == 5 else word for n, word in enumerate(words)]
    pair = [make_document("s", name, " ".join(text)) for name, text in (("a", words), ("b", changed))]
    exact = jaccard([document.text for document in pair])
    assert 0.65 < exact < 0.8
    assert step(pair, DedupConfig(similarity=exact - 0.12)).removed == {0: "near duplicate"}
    assert step(pair, DedupConfig(similarity=exact + 0.12)).removed == {}


def test_by_default_a_copy_shares_seven_tenths_of_its_shingles():
    def near(every):
        """Forty texts and their copies with every `every`th word changed: the largest similarity, and what goes."""
        documents = []
        for number in range(40):
            words = [f"word{number}x{n}" for n in range(400)]
            copy = [f"other{number}x{n}" if n % every == 3 else word for n, word in enumerate(words)]
            documents += [make_document("s", f"{number}{i}", " ".join(text)) for i, text in enumerate((words, copy))]
        return jaccard([document.text for document in documents[:2]]), step(documents, DedupConfig()).removed

    close, removed = near(60)
    assert close > 0.82 and len(removed) > 35
    # Some of these pairs meet in a band: only the similarity asked for keeps them, but for an estimate far off.
    far, kept = near(20)
    assert 0.55 < far < 0.62 and len(kept) <= 2


def test_texts_meet_in_one_whole_band_of_eight_bins():
    table = np.arange(2 * BINS, dtype=np.uint64).reshape(2, BINS)
    table[1, 8:15] = table[0, 8:15]
    assert list(clusters(table, 0.01)) == [0, 1]
    table[1, 15] = table[0, 15]
    assert list(clusters(table, 0.01)) == [0, 0]


def test_texts_of_one_band_are_held_against_their_neighbours_too():
    # All four meet in the first band, and in no other; only the second and the third are alike.
    table = np.arange(4 * BINS, dtype=np.uint64).reshape(4, BINS)
    table[:, :8] = table[0, :8]
    alike = np.arange(BINS) % 8 != 3
    table[2, alike] = table[1, alike]
    assert list(clusters(table, 0.5)) == [0, 1, 1, 3]
