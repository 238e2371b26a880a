"""Time limits that hold even where a call waits: a compiler that has no end, say."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _ExpiredError(BaseException):
    """Raised by the alarm; code that catches every Exception doesn't stop it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the code inside takes longer. Limits may be nested; the first to end counts.

    Only the main thread can be interrupted: elsewhere, and where a single call into C never returns, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread() or seconds == float("inf"):
        yield
        return
    start = time.monotonic()
    outer_s, _ = signal.getitimer(signal.ITIMER_REAL)
    mine = not 0 < outer_s < seconds
    handler = signal.signal(signal.SIGALRM, _expire) if mine else signal.getsignal(signal.SIGALRM)
    try:
        if mine:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    except _ExpiredError:
        if not mine:
            raise
        raise TimeoutError(f"took longer than {seconds:.0f} s") from None
    finally:
        if mine:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            if outer_s:
                left_s = outer_s - (time.monotonic() - start)
                signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-6))


def _expire(_signal: int, _frame: FrameType | None) -> None:
    raise _ExpiredError
