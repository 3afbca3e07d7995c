"""Exact duplicates, repeated paragraphs and boilerplate lines."""

from loopline.corpus.config import DedupConfig
from loopline.corpus.dedup import exact_step, passage_step
from loopline.corpus.document import make_document


def prose(*texts):
    return [make_document("s", f"{n}.txt", text) for n, text in enumerate(texts)]


def long(name):
    return f"Paragraph {name}: " + f"a sentence about {name} that nobody else wrote down, and then some more. " * 3


def test_the_first_copy_stays():
    documents = prose("one", "two", "one", "one ")
    assert exact_step(documents).removed == {2: "exact copy"}


def test_a_paragraph_is_kept_once_and_a_document_with_nothing_new_goes():
    shared = long("shared")
    documents = prose(f"{long('a')}\n\n{shared}", f"{shared}\n\n{long('b')}", shared.upper())
    change = passage_step(documents, DedupConfig())
    assert 0 not in change.edited
    assert change.edited[1].text == long("b")
    assert change.removed == {2: "nothing new left"}
    assert {reason for _, reason, _ in change.cut} == {"repeated paragraph"}


def test_a_line_of_many_documents_is_boilerplate_but_for_the_first():
    line = "Click here to subscribe to our newsletter"
    documents = prose(*(f"{long(n)}\n{line}\nand {long(n + 'x')}" for n in "abcdefgh"))
    change = passage_step(documents, DedupConfig(line_documents=6))
    assert set(change.edited) == set(range(1, 8))
    assert all(line not in document.text for document in change.edited.values())
    assert passage_step(documents, DedupConfig(line_documents=8)).edited == {}


def test_code_and_generated_documents_are_left_alone():
    text = long("x")
    documents = [
        make_document("s", "a.py", text),
        make_document("s", "b.py", text + "\n"),
        make_document("synthetic/x", "a", text),
    ]
    change = passage_step(documents, DedupConfig())
    assert not change.edited
    assert not change.removed
    assert not passage_step([], DedupConfig()).removed


def test_a_document_is_removed_when_less_than_the_smallest_size_is_left():
    shared, own = long("shared"), long("own")
    documents = prose(shared, f"{shared}\n\n{own}")
    size = len(own.encode())
    assert passage_step(documents, DedupConfig(min_document_bytes=size)).edited[1].text == own
    assert passage_step(documents, DedupConfig(min_document_bytes=size + 1)).removed == {1: "nothing new left"}


def test_copies_are_found_between_batches(monkeypatch):
    # Each text in a batch of its own, as with more text than fits into one.
    monkeypatch.setattr("loopline.corpus.dedup.batches", lambda sizes: [range(n, n + 1) for n in range(len(sizes))])
    shared = long("shared")
    change = passage_step(prose(f"{long('a')}\n\n{shared}", f"{long('b')}\n\n{shared}", shared), DedupConfig())
    assert change.edited[1].text == long("b") and change.removed == {2: "nothing new left"}
    assert passage_step([], DedupConfig()).removed == {}
