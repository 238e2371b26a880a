"""The exceptions that a user sees as a message instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; the message says what, what was got, what is allowed and how to fix it."""


class StorageError(UserError):
    """Results can't be written. A run stops at once, for whatever it measured would be lost."""
