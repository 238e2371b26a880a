from __future__ import annotations

import io

import pytest

from bench.progress import Progress, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (-3, "0 s")]
)
def test_duration_reads_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_counts_tasks_units_and_the_whole_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress([1000.0, 3000.0], stream, _started=0.0)
    assert progress.remaining_s() == 4000.0
    progress.start_task("shapes-32/real/features", 10)
    clock[0] = 2000.0  # twice as slow as estimated
    progress.advance(10)
    progress.finish_task()
    assert progress.remaining_s() == pytest.approx(6000, rel=0.05)
    progress.finish_task(was_done_before=True)
    assert progress.remaining_s() == 0.0
    assert "[1/2] shapes-32/real/features  10/10" in stream.getvalue()
