"""Normalization: idempotent, NFC, and careful with what only looks broken."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopline.corpus.document import make_document
from loopline.corpus.normalize import normalize, step


@given(st.text())
@example("\xadÂ¡")
def test_normal_form_is_stable_and_has_no_control_characters(text):
    once = normalize(text)
    assert normalize(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(character) == "Cc" and character not in "\n\t" for character in once)


@given(st.text(st.sampled_from("Ã©¤â€™œÂ°ðŸ˜€aé "), max_size=12))
def test_text_that_looks_like_mojibake_has_a_stable_form_too(text):
    assert normalize(normalize(text)) == normalize(text)


@given(st.text(st.sampled_from("abcéüñß€’“”—漢字 \n"), min_size=1))
def test_mojibake_is_undone(text):
    once = normalize(text)
    try:
        broken = once.encode("utf-8").decode("cp1252")
    except UnicodeDecodeError:
        return  # Windows-1252 has five holes.
    assert normalize(broken) == once


@pytest.mark.parametrize("text", ["20 Â°C in St. Ãrsula, café", "naïve façade", "x² + y²", "Ã is a letter, Â too, é"])
def test_meant_letters_stay(text):
    assert normalize(text) == text


def test_line_ends_spaces_and_marks():
    assert normalize("\ufeffa  \r\nb\x00\x07\fc\u200b\u00a0d\n\n\n\n\n\ne\n\n") == "a\nb\nc d\n\n\ne"
    assert normalize("e\u0301") == "é"
    assert normalize(" \n\x01") == ""


def test_the_step_removes_what_is_empty_and_counts_repairs():
    documents = [
        make_document("s", str(n), text) for n, text in enumerate(["\x00", "fine", "cafÃ© â€“ déjà", "naÃ¯ve"])
    ]
    change = step(documents)
    assert change.removed == {0: "empty"}
    assert change.edited[3].text == "naïve"
    assert change.counts["mojibake repaired"] >= 1
