from __future__ import annotations

import signal
import threading
import time

import pytest

from bench.kernel_speed.deadline import time_limit


def wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)


def test_time_limit_ends_what_takes_too_long() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="longer than 0 s"), time_limit(0.05):
        wait(5)
    assert time.monotonic() - start < 1
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_time_limit_leaves_alone_what_is_in_time() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(0.05):
        pass
    wait(0.1)
    assert signal.getsignal(signal.SIGALRM) is before


def stubborn() -> None:
    try:
        wait(5)
    except Exception:
        wait(5)


def test_code_that_catches_everything_does_not_escape_it() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError), time_limit(0.05):
        stubborn()
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(("outer_s", "inner_s"), [(0.05, 5.0), (5.0, 0.05)])
def test_the_first_of_nested_limits_counts(outer_s: float, inner_s: float) -> None:
    passed: list[str] = []

    def nested() -> None:
        try:
            with time_limit(inner_s):
                wait(5)
        except TimeoutError:
            passed.append("inner")
            raise

    with pytest.raises(TimeoutError), time_limit(outer_s):
        nested()
    assert passed == (["inner"] if inner_s < outer_s else [])


def test_an_outer_limit_goes_on_after_an_inner_one() -> None:
    def nested() -> None:
        with time_limit(0.05):
            pass
        wait(5)

    with pytest.raises(TimeoutError, match="longer than 0 s"), time_limit(0.15):
        nested()


def test_other_threads_are_not_limited() -> None:
    done = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
