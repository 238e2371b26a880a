"""The exceptions that a user sees as a message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the message says what, what was got, what is allowed and how to fix it."""


class StorageError(UserError):
    """Results can't be written. A run stops at once, for whatever it measured would be lost."""


def did_you_mean(got: str, allowed: Iterable[str], cutoff: float = 0.3) -> str:
    """ " Did you mean 'x'?" for the allowed name that is nearest, nothing where none is near."""
    near = difflib.get_close_matches(got, list(allowed), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
