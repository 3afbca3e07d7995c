"""Ranking: exact titles first, whole titles in a question before mixtures, no randomness."""

from hypothesis import given
from hypothesis import strategies as st

from loopline.environments.bm25 import BM25, singular

COLOURS, THINGS = ("blue", "red", "green"), ("lamp", "cup", "brush", "box")
DOCUMENTS = [
    (f"{colour} {thing}", f"The {colour} {thing} costs {n} coins. The {colour} {thing} weighs {n + 1} kilos.")
    for n, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS)
]


def test_a_title_as_query_ranks_its_document_first() -> None:
    index = BM25(DOCUMENTS)
    for number, (title, _) in enumerate(DOCUMENTS):
        assert index.search(title, 1)[0][0] == number


def test_a_question_finds_both_things_it_names_and_scores_mixtures_lower() -> None:
    index = BM25(DOCUMENTS)
    hits = index.search("What do the blue lamp and the red cup cost together?", 4)
    assert {DOCUMENTS[number][0] for number, _ in hits[:2]} == {"blue lamp", "red cup"}
    assert hits[2][1] < 0.6 * hits[0][1]


def test_plurals_find_singulars() -> None:
    index = BM25(DOCUMENTS)
    cases = [("4 green brushes", "green brush"), ("2 red boxes", "red box"), ("3 blue lamps", "blue lamp")]
    for plural, title in cases:
        assert DOCUMENTS[index.search(f"What do {plural} cost?", 1)[0][0]][0] == title
    assert [singular(word) for word in ("glass", "dishes", "his", "keys")] == ["glass", "dish", "his", "key"]


@given(st.lists(st.sampled_from(COLOURS + THINGS + ("zebra",)), max_size=5), st.integers(1, 12))
def test_results_are_ordered_bounded_and_contain_a_query_word(query: list[str], k: int) -> None:
    hits = BM25(DOCUMENTS).search(" ".join(query), k)
    scores = [score for _, score in hits]
    assert len(hits) <= k and scores == sorted(scores, reverse=True)
    assert all(any(word in DOCUMENTS[number][0] for word in query) for number, _ in hits)
    assert bool(hits) == any(word != "zebra" for word in query)
