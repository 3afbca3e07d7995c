"""Language identification of the prose lane."""

from loopline.corpus.document import make_document
from loopline.corpus.language import identify, step

ENGLISH = "The lamp stands on the table, and people read below it every evening until they are tired."
GERMAN = "Die Lampe steht auf dem Tisch, und die Leute lesen jeden Abend darunter, bis sie müde werden."
FRENCH = "La lampe est posée sur la table, et les gens lisent dessous tous les soirs jusqu'à la fatigue."


def test_prose_in_other_languages_is_removed_and_other_lanes_pass():
    documents = [
        make_document("s", "en.txt", ENGLISH * 3),
        make_document("s", "de.txt", GERMAN * 3),
        make_document("s", "fr.txt", FRENCH * 3),
        make_document("s", "de.py", GERMAN * 3),
        make_document("synthetic/x", "de.txt", GERMAN * 3),
    ]
    assert step(documents, ("en",), 0.5).removed == {1: "language de", 2: "language fr"}
    assert step(documents, ("en", "fr"), 0.5).removed == {1: "language de"}
    assert step(documents, (), 0.5).removed == {}
    assert step(documents, ("en",), 1.0).removed == {}


def test_confidence_is_a_probability():
    language, confidence = identify(GERMAN)
    assert language == "de"
    assert 0.5 < confidence <= 1
