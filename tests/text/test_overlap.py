"""Held-out text is found whatever its case and spacing, and unrelated text is left alone."""

from hypothesis import given
from hypothesis import strategies as st

from loopline.text.overlap import RUN, TEMPLATE, HeldoutText

NAMES = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st", "uv", "wx", "yz", "1", "2", "3", "44"]
words = st.lists(st.sampled_from(NAMES), max_size=30)


@given(item=st.lists(st.sampled_from(NAMES), min_size=8, max_size=30), before=words, after=words)
def test_an_item_is_found_wherever_it_stands(item, before, after):
    held = HeldoutText([" ".join(item)])
    assert held.holds(", ".join([*before, *item, *after]).upper())


@given(item=words, text=words)
def test_what_is_found_shares_a_run_of_words_with_the_item(item, text):
    held = HeldoutText([" ".join(item)])
    length = min(RUN, len(item))
    runs = {tuple(item[at : at + length]) for at in range(len(item) - length + 1)}
    mine = {tuple(text[at : at + length]) for at in range(len(text) - length + 1)}
    expected = bool(item) and (item == text if len(item) < 8 else bool(runs & mine))
    assert held.holds(" ".join(text)) == expected


def test_short_items_count_only_as_a_whole():
    held = HeldoutText(["What is 2+2?"])
    assert held.holds("what is 2 + 2") and not held.holds("What is 2+2+3?") and not held.holds("So what is 2+2?")


def test_operators_make_another_item():
    held = HeldoutText(["12+5-3=?"])
    assert held.holds("12 + 5 - 3 =") and not held.holds("12-5+3=?")


def test_the_template_of_several_items_gives_none_of_them_away():
    def ask(word):
        return f"Write f(x). Take the text x, add a letter at its end, then replace {word} by nothing at all."

    items = [ask(word) for word in ("alpha", "beta", "gamma")]
    held = HeldoutText(items)
    assert len(items) == TEMPLATE
    assert not held.holds(ask("delta"))
    assert all(held.holds(f"Please: {item}".upper()) for item in items)
    # The same item twice is one item.
    assert HeldoutText(items[:1] * TEMPLATE).holds(ask("delta"))
