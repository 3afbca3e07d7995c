"""The byte kernel against plain Python on arbitrary text."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loopline.text.kernel import Shard, batches, hash_text, ngrams, repeats

texts = st.lists(st.text(st.sampled_from("ab Ab_9é.\n\n\t-漢"), max_size=40), min_size=1, max_size=6)


def pieces(shard, spans, documents):
    found = [[] for _ in documents]
    for start, end, number in zip(spans.start, spans.end, spans.document, strict=True):
        found[number].append(shard.raw[start:end].tobytes().decode("utf-8"))
    return found


@given(texts)
def test_tables_agree_with_regular_expressions(documents):
    shard = Shard(documents)
    assert pieces(shard, shard.words(), documents) == [re.findall(r"[^ \n\t]+", text) for text in documents]
    assert pieces(shard, shard.terms(), documents) == [re.findall(r"\w+", text) for text in documents]
    assert pieces(shard, shard.symbols(), documents) == [re.findall(r"\w+|[^\w\s]", text) for text in documents]
    assert pieces(shard, shard.lines(), documents) == [re.findall(r"[^\n]+", text) for text in documents]
    paragraphs = [[p.strip("\n") for p in re.split(r"\n{2,}", text) if p.strip("\n")] for text in documents]
    assert pieces(shard, shard.paragraphs(), documents) == paragraphs


@given(texts)
def test_equal_words_have_equal_hashes_wherever_they_stand_and_whatever_their_ascii_case(documents):
    shard = Shard(documents)
    words = shard.words()
    names = [name for found in pieces(shard, words, documents) for name in found]
    keys = shard.hash(words).tolist()

    def fold(name):
        return re.sub("[A-Z]", lambda match: match.group().lower(), name)

    assert len({fold(name) for name in names}) == len(set(keys))
    assert keys == [hash_text(name) for name in names]


@given(texts, st.integers(1, 4))
def test_ngrams_stay_inside_documents_and_repeats_are_those_seen_before(documents, n):
    shard = Shard(documents)
    terms = shard.terms()
    words = pieces(shard, terms, documents)
    keys, position = ngrams(shard.hash(terms), terms.document, n)
    expected = [
        (d, tuple(w.lower() for w in ws[i : i + n])) for d, ws in enumerate(words) for i in range(len(ws) - n + 1)
    ]
    assert len(keys) == len(expected)
    assert len(set(keys.tolist())) == len({gram for _, gram in expected})
    seen, again = set(), []
    for item in expected:
        again.append(item in seen)
        seen.add(item)
    assert repeats(keys, terms.document[position]).tolist() == again


def test_folding_ignores_case_beyond_ascii():
    lower, upper = Shard(["straße école"], fold=True), Shard(["STRAßE ÉCOLE"], fold=True)
    assert (lower.hash(lower.words()) == upper.hash(upper.words())).all()


@given(st.lists(st.integers(0, 30)), st.integers(1, 40))
def test_batches_cover_everything_in_order(sizes, target):
    parts = list(batches(sizes, target))
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in list(part)[:-1]) < target for part in parts)


def test_an_empty_shard_has_empty_tables():
    shard = Shard(["", ""])
    assert len(shard.words()) == len(shard.paragraphs()) == 0
    assert np.asarray(shard.total(shard.words())).tolist() == [0, 0]
