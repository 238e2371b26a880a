"""The one exception that a user sees as a message instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; the message says what, what was got, what is allowed and how to fix it."""
