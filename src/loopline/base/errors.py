"""Errors meant for the person at the keyboard.

Raise `UserError` for anything the user can fix: a bad key, a missing folder, a full disk. The command line prints it
as one paragraph and exits with status 2. Defects of the program are ordinary exceptions and keep their traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix.

    `what` names the file, key or line at fault; `fix` says what to do about it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what.rstrip(". ")
        self.fix = fix.rstrip(". ")

    def __str__(self) -> str:
        return f"{self.what}. Fix: {self.fix}."
