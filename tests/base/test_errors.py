"""What the person at the keyboard reads."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError


@given(what=st.text(alphabet="abc .", min_size=1).filter(str.strip), fix=st.sampled_from(["mend it", "mend it."]))
def test_an_error_is_one_paragraph_that_ends_with_its_fix(what, fix):
    text = str(UserError(what, fix))
    assert "\n" not in text
    assert text.endswith("Fix: mend it.")
    assert ".." not in text.removeprefix(what.rstrip(". "))


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(UserError("The key is wrong", "change it")))
    assert str(error) == "The key is wrong. Fix: change it."
