"""Two-level progress: this task, and the whole plan with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

LINE_EVERY_S = 15.0  # where the output is not a terminal
FIRST_GUESS_WEIGHT_S = 20.0  # how long a measured pace must be before it outweighs the estimate


def format_duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(slots=True)
class Progress:
    """Tells where a plan is. `estimates_s` are the tasks' expected durations, in order."""

    estimates_s: Sequence[float]
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _index: int = -1
    _title: str = ""
    _units: int = 1
    _done: int = 0
    _estimated_done_s: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _last_line: float = 0.0
    _is_mute: bool = False

    def mute(self) -> None:
        """Say nothing: another process speaks for all."""
        self._is_mute = True

    def restart(self) -> None:
        """Go through the tasks once more, from the first."""
        self._index, self._estimated_done_s, self._started = -1, 0.0, time.monotonic()

    def start_task(self, title: str, units: int) -> None:
        """Begin the next task, which consists of `units` images, steps or calls."""
        self._index += 1
        self._title, self._units, self._done = title, max(units, 1), 0
        self._show(force=True)

    def advance(self, units: int = 1) -> None:
        """Some units of this task are done."""
        self._done += units
        self._show(force=False)

    def finish_task(self, *, was_done_before: bool = False) -> None:
        """This task is done; one that an earlier, cut run did takes no part in the pace."""
        if was_done_before:
            self._index += 1
            self.estimates_s = [*self.estimates_s[: self._index], 0.0, *self.estimates_s[self._index + 1 :]]
        else:
            self._estimated_done_s += self.estimates_s[self._index]
            self._done = 0  # it counts as a whole task from now on

    def remaining_s(self) -> float:
        """The time left for the whole plan, from the estimates and the pace so far."""
        part = self.estimates_s[self._index] * min(self._done / self._units, 1.0) if self._index >= 0 else 0.0
        done_s = self._estimated_done_s + part
        elapsed_s = time.monotonic() - self._started
        pace = (elapsed_s + FIRST_GUESS_WEIGHT_S) / (done_s + FIRST_GUESS_WEIGHT_S)
        return max(pace * (sum(self.estimates_s) - done_s), 0.0)

    def _show(self, *, force: bool) -> None:
        now = time.monotonic()
        is_terminal = self.stream.isatty()
        if self._is_mute or (not force and now - self._last_line < (0.2 if is_terminal else LINE_EVERY_S)):
            return
        self._last_line = now
        line = (
            f"[{self._index + 1}/{len(self.estimates_s)}] {self._title}  {min(self._done, self._units)}/{self._units}"
            f"  whole plan: about {format_duration(self.remaining_s())} left"
        )
        self.stream.write(f"\r\x1b[2K{line}" if is_terminal else line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the line that the progress was on."""
        if self.stream.isatty():
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
