"""The history of speed as a picture, with the commits at which a kernel or a generator changed."""

from __future__ import annotations

import fnmatch
import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.change_points import change_points
from bench.environment import ROOT
from bench.errors import UserError
from bench.history import HISTORY, read_history
from bench.plots import COLOURS, DPI, PANEL_INCHES, STYLE, figure_bytes
from bench.records import Record, write_atomic

PLOTS = ROOT / "results" / "plots"
VOLATILE = frozenset({"sm_clock_mhz", "memory_clock_mhz"})  # they move from one minute to the next
MAX_COLUMNS, MAX_PANELS, MAX_CHANGES, MAX_TICKS = 3, 24, 20, 6
SLOWER, FASTER = "#D55E00", "#009E73"

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A new level from row `index` of a series on; medians of the segments on either side, in the series' unit."""

    index: int
    before: float
    after: float

    @property
    def relative(self) -> float:
        """0.05: the value grew by 5 %."""
        return self.after / self.before - 1


@dataclass(frozen=True, slots=True)
class Series:
    """Rows that may be joined by a line: one subject and case, one machine, one environment; oldest first."""

    machine: str
    environment: Facts
    subject: str
    case: str
    records: tuple[Record, ...]
    changes: tuple[Change, ...]

    @property
    def values(self) -> list[float]:
        """The measured values."""
        return [record.measurement.value or 0.0 for record in self.records]

    @property
    def bounds(self) -> list[int]:
        """Where segments begin, and the end."""
        return [0, *(change.index for change in self.changes), len(self.records)]


def run_trend(machine: str, kernel: str, output: Path | None) -> int:
    """Print the latest changes, and draw a figure for each machine."""
    found = [
        record
        for record in read_history(HISTORY)
        if fnmatch.fnmatch(record.provenance.machine, machine) and fnmatch.fnmatch(record.measurement.subject, kernel)
    ]
    if not found:
        raise UserError(f"{HISTORY} has no row of a machine {machine!r} and a kernel or model {kernel!r}")
    all_series = list_series(found)
    print(format_changes(all_series))
    for name in dict.fromkeys(series.machine for series in all_series):
        for kind, content in draw([series for series in all_series if series.machine == name]).items():
            path = (output or PLOTS) / f"trend-{name}.{kind}"
            write_atomic(path, content)
            print(f"plot     {path}")
    return 0


def list_series(records: Iterable[Record]) -> list[Series]:
    """Sort rows, oldest first, into what is comparable, and find the changes in each."""
    groups: dict[tuple[str, Facts, str, str], list[Record]] = {}
    for record in records:
        measured, origin = record.measurement, record.provenance
        case = " ".join(f"{name}={value}" for name, value in sorted(measured.case.items()))
        unit = f"{measured.metric} ({measured.unit}), {measured.protocol}"
        key = (origin.machine, steady_facts(origin.environment), measured.subject, f"{unit}, {case}")
        groups.setdefault(key, []).append(record)
    return [Series(*key, records=tuple(rows), changes=_changes(rows)) for key, rows in groups.items()]


def steady_facts(environment: Mapping[str, Any], prefix: str = "") -> Facts:
    """The facts that end a series when they change, as sorted pairs of name and value; clocks don't."""
    facts: list[tuple[str, str]] = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            facts += steady_facts(value, f"{prefix}{name}.")
        elif name not in VOLATILE:
            facts.append((f"{prefix}{name}", str(value)))
    return tuple(sorted(facts))


def _changes(records: Sequence[Record]) -> tuple[Change, ...]:
    values = [record.measurement.value or 0.0 for record in records]
    points = change_points([math.log(value) for value in values])
    bounds = [0, *points, len(values)]
    levels = [statistics.median(values[a:b]) for a, b in itertools.pairwise(bounds)]
    return tuple(Change(point, levels[i], levels[i + 1]) for i, point in enumerate(points))


def format_changes(all_series: Sequence[Series]) -> str:
    """A plain-text table of the latest changes, newest first."""
    found = [(series, change) for series in all_series for change in series.changes]
    found.sort(key=lambda pair: pair[0].records[pair[1].index].timestamp_utc, reverse=True)
    rows = sum(len(series.records) for series in all_series)
    head = f"{rows} rows in {len(all_series)} series, {len(found)} changes"
    if not found:
        return head
    columns = f"{'when':<20} {'commits':<18} {'before':>10} {'after':>10} {'change':>8}  what"
    shown = [_format_change(series, change) for series, change in found[:MAX_CHANGES]]
    return "\n".join([head if len(found) <= MAX_CHANGES else f"{head}, the latest {MAX_CHANGES}:", columns, *shown])


def _format_change(series: Series, change: Change) -> str:
    last, first = series.records[change.index - 1], series.records[change.index]
    commits = f"{commit_name(last)}..{commit_name(first)}"
    figures = f"{change.before:>10.4g} {change.after:>10.4g} {change.relative:>+8.1%}"
    return f"{first.timestamp_utc[:19]:<20} {commits:<18} {figures}  {series.subject}, {series.case}, {series.machine}"


def commit_name(record: Record) -> str:
    """Seven digits of the commit, with a + where files differed from it."""
    commit = (record.provenance.commit or "unknown")[:7]
    return f"{commit}+" if record.provenance.dirty else commit


def draw(all_series: Sequence[Series]) -> dict[str, bytes]:
    """Draw one machine's series, one panel for each subject and case, as `png` and `svg`."""
    panels: dict[tuple[str, str], list[Series]] = {}
    for series in all_series:
        panels.setdefault((series.subject, series.case), []).append(series)
    chosen = sorted(panels.values(), key=_newest_change, reverse=True)[:MAX_PANELS]
    with style.context(STYLE, after_reset=True):  # a reader's own matplotlibrc must not change the bytes
        columns = min(MAX_COLUMNS, len(chosen))
        rows = math.ceil(len(chosen) / columns)
        size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
        figure = Figure(size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, chosen, strict=False):
            _draw_panel(axes, panel)
        for axes in list(grid.flat)[len(chosen) :]:
            axes.set_axis_off()
        left_out = f"; {len(panels) - len(chosen)} more are not drawn" if len(panels) > len(chosen) else ""
        figure.suptitle(f"{chosen[0][0].machine}: lines of one colour share an environment{left_out}", fontsize=9)
        return {kind: figure_bytes(figure, kind) for kind in ("png", "svg")}


def _newest_change(panel: Sequence[Series]) -> str:
    """When the panel changed last; empty if it never did."""
    return max((s.records[change.index].timestamp_utc for s in panel for change in s.changes), default="")


def _draw_panel(axes: Axes, panel: Sequence[Series]) -> None:
    order = sorted((record for series in panel for record in series.records), key=lambda record: record.timestamp_utc)
    place = {id(record): x for x, record in enumerate(order)}
    for number, series in enumerate(panel):
        axes.plot([], [], COLOURS[number % len(COLOURS)], label=_what_is_new(series, panel[max(number - 1, 0)]))
        _draw_series(axes, series, [place[id(record)] for record in series.records], COLOURS[number % len(COLOURS)])
    if len(panel) > 1:
        axes.legend(fontsize=6)
    axes.set_title(panel[0].subject, loc="left", fontweight="bold", fontsize=9)
    unit, _, case = panel[0].case.partition(", ")
    axes.set_ylabel(unit)
    middle, (low, high) = statistics.median(value for series in panel for value in series.values), axes.get_ylim()
    axes.set_ylim(min(low, 0.95 * middle), max(high, 1.05 * middle))  # noise of a percent must not look like mountains
    axes.xaxis.set_major_locator(MaxNLocator(MAX_TICKS, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(
        lambda x, _: commit_name(order[round(x)]) if x == round(x) and 0 <= x < len(order) else ""
    )
    axes.tick_params("x", labelrotation=30, labelsize=7)
    axes.set_xlabel(case, fontsize=6, wrap=True)


def _what_is_new(series: Series, before: Series) -> str:
    """What the environment has otherwise than the one before it."""
    if series is before:
        return "first environment"
    new = [f"{name} {value}" for name, value in sorted(set(series.environment) - set(before.environment))]
    return textwrap.shorten(", ".join(new), 60) or "facts are missing"


def _draw_series(axes: Axes, series: Series, places: Sequence[int], colour: str) -> None:
    values = series.values
    intervals = [record.measurement.interval for record in series.records]
    bars = [(0.0, 0.0) if i is None else (v - i[0], i[1] - v) for v, i in zip(values, intervals, strict=True)]
    low, high = zip(*bars, strict=True)
    axes.errorbar(places, values, yerr=[low, high], fmt=".-", color=colour, linewidth=0.8, elinewidth=0.6)
    for start, end in itertools.pairwise(series.bounds):
        level = statistics.median(values[start:end])
        axes.hlines(level, places[start], places[end - 1], color=colour, linewidth=2.4, alpha=0.35)
    for change in series.changes:
        tone = SLOWER if change.relative > 0 else FASTER
        x = (places[change.index - 1] + places[change.index]) / 2
        axes.axvline(x, color=tone, linestyle="--", linewidth=1)
        axes.annotate(
            *(f"{change.relative:+.1%}", (x, 0.03)), xycoords=("data", "axes fraction"), fontsize=7, color=tone
        )
