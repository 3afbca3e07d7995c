"""Personal data: planted items of every kind go, tricky neighbours stay, and a second pass changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.corpus.document import make_document
from loopline.corpus.pii import iban, luhn, scrub, step

FOUND = [
    ("mail jane.doe+x@mail.example.org now", "email"),
    ("From: <a_b@uni-x.ac.uk>", "email"),
    ("host 93.184.216.34 answered", "ip"),
    ("host 2606:4700:4700::1111 answered", "ip"),
    ("call +49 30 901820 today", "phone"),
    ("call (555) 867-5309 today", "phone"),
    ("call 555-867-5309 today", "phone"),
    ("card 4111 1111 1111 1111 ok", "card"),
    ("card 378282246310005 ok", "card"),
    ("pay DE89 3704 0044 0532 0130 00 please", "iban"),
    ("ssn 078-05-1120 here", "ssn"),
    ("key AKIAIOSFODNN7EXAMPLE end", "secret"),
    ("token ghp_" + "a1B2" * 9 + " end", "secret"),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123456_x end", "secret"),
    ('password = "hunter2hunter2"', "secret"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----", "private_key"),
]
KEPT = [
    "git@github.com:owner/name.git",
    "version 1.2.3.4-rc1 and 10.0.0.1 and 127.0.0.1",
    "range 1:2:3 at 12:30:45, C++ std::vector::size",
    "order 4111 1111 1111 1112",
    "date 2024-01-02 and 000-12-3456",
    "@decorator and @property",
    "pay DE00 3704 0044 0532 0130 00",
    'password = os.environ["PASSWORD"]',
    "3.14159265358979",
    "the code 1234567890123",
    "sizes 100 200 300 400",
    "12+5-3=14 and 20-15+2=7",
]


@pytest.mark.parametrize(("text", "kind"), FOUND)
def test_planted_items_are_replaced(text, kind):
    clean, counts = scrub(text)
    assert counts == {kind: 1}
    assert f"[{kind.upper()}]" in clean


@pytest.mark.parametrize("text", KEPT)
def test_tricky_neighbours_stay(text):
    assert scrub(text) == (text, {})


@given(
    st.lists(
        st.sampled_from([item for item, _ in FOUND] + KEPT + ["a", "@", "-", "+1", "\n", '"', "4111", ":"]), max_size=8
    )
)
def test_scrubbing_is_idempotent_and_deterministic(parts):
    for text in (" ".join(parts), "".join(parts)):
        clean, _ = scrub(text)
        assert scrub(clean) == (clean, {})
        assert scrub(text)[0] == clean


def test_mirrors_that_differ_in_addresses_become_equal():
    first, second = (f"Write to {a} about it." for a in ("a@x.org", "bee@why.net"))
    assert scrub(first)[0] == scrub(second)[0]


@given(st.integers(10**11, 10**17))
def test_luhn_accepts_exactly_one_check_digit(number):
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1


def test_iban_checks_the_whole_number():
    assert iban("GB82 WEST 1234 5698 7654 32")
    assert not iban("GB82 WEST 1234 5698 7654 33")


def test_samples_never_show_what_was_found_and_generated_text_is_exempt():
    documents = [make_document("s", "a", FOUND[0][0]), make_document("synthetic/x", "a", FOUND[0][0])]
    change = step(documents)
    assert set(change.edited) == {0}
    assert all("jane" not in piece for _, _, piece in change.cut)


@pytest.mark.parametrize("number", ["001-01-0001", "665-10-2345", "667-10-2345", "899-99-9999", "123-45-6789"])
def test_numbers_the_social_security_administration_gives_out_go(number):
    assert scrub(f"ssn {number} here") == ("ssn [SSN] here", {"ssn": 1})


@pytest.mark.parametrize(
    # Areas 000, 666 and 900 to 999, group 00 and serial 0000 are never given out.
    "number",
    ["000-12-3456", "666-12-3456", "900-12-3456", "987-65-4321", "999-12-3456", "123-00-4567", "123-45-0000"],
)
def test_numbers_that_are_never_given_out_stay(number):
    assert scrub(f"part {number} here") == (f"part {number} here", {})


def luhn_number(start, length):
    """A number that begins with `start`, has `length` digits and the right check digit."""
    body = start + "0123456789"[: length - len(start) - 1].ljust(length - len(start) - 1, "7")
    return next(f"{body}{digit}" for digit in range(10) if luhn(f"{body}{digit}"))


@pytest.mark.parametrize("length", [13, 15, 16, 19])
def test_card_numbers_of_every_length_go(length):
    assert scrub(f"card {luhn_number('4', length)} ok") == ("card [CARD] ok", {"card": 1})


@pytest.mark.parametrize("start", ["1", "2", "7", "9"])
def test_numbers_that_no_card_begins_with_stay(start):
    text = f"order {luhn_number(start, 16)} ok"
    assert scrub(text) == (text, {})


def test_one_digit_over_and_over_is_no_card():
    assert luhn("6" * 13) and scrub("order 6666666666666 ok") == ("order 6666666666666 ok", {})


def test_samples_show_the_text_around_what_was_cut():
    before, after = "a" * 90, "b" * 90
    (cut,) = step([make_document("s", "a", f"{before} x@mail.example.org {after}")]).cut
    assert cut[2] == f"{'a' * 59} [EMAIL] {'b' * 52}"
