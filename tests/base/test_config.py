"""Configs refuse what they do not know, and know what is identity and what only says where something runs."""

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from loopline.base.config import Config, Runtime, identity_of, sha256_of


class Place(Runtime):
    """Where."""

    threads: int = 1
    """Threads."""


class Inner(Config):
    """Nested settings."""

    rate: float = Field(default=0.5, gt=0, le=1)
    """A share."""
    place: Place = Place()
    """Where."""


class Colour(Enum):
    RED = "red"


class Outer(Config):
    """Settings of everything."""

    steps: int = Field(default=3, ge=1)
    """Steps."""
    inner: Inner = Inner()
    """Nested."""
    parts: list[Inner] = []
    """Several."""
    weights: dict[str, float] = {}
    """By name."""
    colour: Colour = Colour.RED
    """One of."""
    place: Place | None = None
    """Where, if not here."""
    places: tuple[Place, ...] = ()
    """Where else."""


@pytest.mark.parametrize(
    ("values", "key", "complaint"),
    [
        ({"stepz": 3}, ("stepz",), "extra"),
        ({"inner": {"rat": 0.1}}, ("inner", "rat"), "extra"),
        ({"steps": 0}, ("steps",), "greater than or equal to 1"),
        ({"inner": {"rate": 1.5}}, ("inner", "rate"), "less than or equal to 1"),
        ({"inner": {"rate": float("nan")}}, ("inner", "rate"), "finite|greater"),
        ({"steps": "many"}, ("steps",), "integer"),
    ],
)
def test_unknown_keys_and_values_out_of_bounds_are_refused_by_name(values, key, complaint):
    with pytest.raises(ValidationError, match=complaint) as caught:
        Outer.model_validate(values)
    assert caught.value.errors()[0]["loc"] == key


def test_a_default_out_of_bounds_is_refused_too():
    class Wrong(Config):
        steps: int = Field(default=0, ge=1)
        """Steps."""

    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Wrong()


def test_configs_are_frozen_and_describe_their_fields():
    config = Outer()
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 4  # type: ignore[misc]
    assert Outer.model_fields["steps"].description == "Steps."


@given(
    here=st.integers(1, 64),
    nested=st.integers(1, 64),
    listed=st.integers(1, 64),
    optional=st.none() | st.integers(1, 9),
)
def test_where_something_runs_is_never_identity(here, nested, listed, optional):
    moved = Outer(
        inner=Inner(place=Place(threads=nested)),
        parts=[Inner(place=Place(threads=listed))],
        place=None if optional is None else Place(threads=optional),
        places=(Place(threads=here),),
    )
    assert identity_of(moved) == identity_of(Outer(parts=[Inner()]))


def test_what_something_computes_is_identity():
    seen = [
        sha256_of(identity_of(config))
        for config in (
            Outer(),
            Outer(steps=4),
            Outer(inner=Inner(rate=0.25)),
            Outer(parts=[Inner()]),
            Outer(weights={"a": 1}),
        )
    ]
    assert len(set(seen)) == len(seen)


def test_the_canonical_form_is_plain_json_and_one_is_one_point_zero():
    assert identity_of(Outer(weights={"b": 2.0, "a": 0.5})) == {
        "steps": 3,
        "inner": {"rate": 0.5},
        "parts": [],
        "weights": {"b": 2, "a": 0.5},
        "colour": "red",
    }
    assert sha256_of(identity_of(Outer(weights={"a": 1, "b": 2}))) == sha256_of(
        identity_of(Outer(weights={"b": 2.0, "a": 1.0}))
    )
    assert sha256_of(identity_of({"on": True})) != sha256_of(identity_of({"on": 1}))


@pytest.mark.parametrize("value", [Place(), {1, 2}, len, object(), [Place()]])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError, match="canonical form|no identity"):
        identity_of(value)
