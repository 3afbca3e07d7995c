"""The small line of real artifacts, shared with the other rooms' tests."""

from tests.support_stages import world

__all__ = ["world"]
