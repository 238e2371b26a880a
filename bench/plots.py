"""Figures of a run. Rendered without a display and without dates, so that the same records give the same bytes."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from bench.grouping import REAL, ColumnKey, comparable_groups, scenes
from bench.records import Measurement, Record

DISTANCES = ("FID", "FD", "sFID", "KID", "KD")
STYLE: Any = {  # any: newer matplotlib types the keys, older ones do not know that type
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "stylebench",
    "svg.fonttype": "path",
}
# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PANEL_INCHES = (4.6, 3.6)
DPI = 160
MARKER = 13.0  # pixels around a point that no name may cover
MAX_COLUMNS = 2
LABEL_PLACES = ((7, 5), (7, -11), (-7, 5), (-7, -11), (0, 9), (0, -16), (7, 16), (-7, 16), (7, -24), (-7, -24))


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    distance: Measurement
    images_per_s: float

    @property
    def y(self) -> float:
        return self.distance.value or 0.0


@dataclass(frozen=True, slots=True)
class _Panel:
    """One data set and resolution: models with both a distance and a speed, and the floor of real images."""

    title: str
    distance: ColumnKey
    speed: ColumnKey
    points: tuple[_Point, ...]
    floor: float | None
    without_speed: tuple[str, ...]


def quality_speed_plot(records: Iterable[Record]) -> dict[str, bytes]:
    """Draw image quality against images per second, one panel a data set and resolution.

    Each panel has one distance and one kind of throughput, so that all its points are comparable. Returns the
    figure as `png` and `svg`; empty when no model has both numbers. Reported numbers aren't drawn: they were timed
    on other machines.
    """
    panels = [panel for scene, found in scenes(records).items() if (panel := _panel(scene.title, found))]
    if not panels:
        return {}
    with style.context(STYLE, after_reset=True):  # a reader's own matplotlibrc must not change the bytes
        figure = _draw(panels)
        return {kind: figure_bytes(figure, kind) for kind in ("png", "svg")}


def _panel(title: str, records: Sequence[Record]) -> _Panel | None:
    """The first distance, with the throughput, that together have the most models; None if no model has both."""
    groups = {key: _latest(group) for key, group in comparable_groups(records).items()}
    distances = [key for family in DISTANCES for key in groups if key.family == family]
    speeds = [key for key in groups if key.metric == "Throughput"]
    pairs = [(d, s) for d in distances for s in speeds if _both(groups[d], groups[s])]
    if not pairs:
        return None
    distance, speed = max(pairs, key=lambda pair: len(_both(groups[pair[0]], groups[pair[1]])))
    values, speeds_of = groups[distance], groups[speed]
    points = tuple(_Point(name, values[name], speeds_of[name].value or 0.0) for name in _both(values, speeds_of))
    floor = values[REAL].value if REAL in values else None
    without_speed = tuple(name for name in values if name not in {REAL, *speeds_of})
    return _Panel(title, distance, speed, points, floor, without_speed)


def _latest(records: Iterable[Record]) -> dict[str, Measurement]:
    """The latest value of each model, by name."""
    values = [record for record in records if record.measurement.status == "ok"]
    values.sort(key=lambda record: (record.measurement.subject, record.timestamp_utc, record.to_json()))
    return {record.measurement.subject: record.measurement for record in values}


def _both(distances: dict[str, Measurement], speeds: dict[str, Measurement]) -> list[str]:
    return [name for name in distances if name in speeds]


def _draw(panels: Sequence[_Panel]) -> Figure:
    columns = min(MAX_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
    figure = Figure(size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    names = [(axes, _draw_panel(axes, panel)) for axes, panel in zip(grid.flat, panels, strict=False)]
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or names that move would move the axes under them
    for axes, texts in names:
        _spread(axes, texts)
    return figure


def _draw_panel(axes: Axes, panel: _Panel) -> list[Annotation]:
    annotations = []
    for i, point in enumerate(panel.points):
        colour = COLOURS[i % len(COLOURS)]
        low, high = point.distance.interval or (point.y, point.y)
        errors = [[max(0.0, point.y - low)], [max(0.0, high - point.y)]]
        axes.errorbar([point.images_per_s], [point.y], yerr=errors, fmt="o", color=colour, markersize=6, capsize=3)
        text = axes.annotate(
            *(point.name, (point.images_per_s, point.y), LABEL_PLACES[0]),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
        text.set_in_layout(False)  # type: ignore[no-untyped-call,unused-ignore]
        annotations.append(text)
    _scale(axes, panel)
    _label(axes, panel)
    return annotations


def _scale(axes: Axes, panel: _Panel) -> None:
    """Log speed always; log distance where models are far apart. Wide margins leave room for names."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    ys = [point.y for point in panel.points] + ([panel.floor] if panel.floor is not None else [])
    if panel.floor is not None:
        axes.axhline(panel.floor, linestyle="--", linewidth=1, color="#666666")
        axes.annotate("real images", (1, panel.floor), (-2, 3), ("axes fraction", "data"), "offset points",
                      ha="right", fontsize=8, color="#666666")  # fmt: skip
    xs = [point.images_per_s for point in panel.points]
    axes.set_xlim(min(xs) / 4, max(xs) * 4)
    if min(ys) > 0 and max(ys) / min(ys) > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(ys) / 2, max(ys) * 2)
    else:
        low, high = min(*ys, 0.0), max(*ys, 0.0)
        room = 0.15 * (high - low or 1.0)
        axes.set_ylim(low - room if low < 0 else 0.0, high + room)


def _label(axes: Axes, panel: _Panel) -> None:
    conditions = dict(panel.speed.conditions)
    where = ", ".join(conditions[name] for name in ("machine", "dtype") if name in conditions)
    axes.set_xlabel(f"images/s, fastest batch size →\n{where}")
    axes.set_ylabel(f"← {panel.distance.label.rstrip(' ↓')}\n{panel.distance.protocol}")
    notes = []
    if all(point.distance.caveats for point in panel.points):
        notes.append("not comparable with published numbers")
    if panel.without_speed:
        notes.append(f"not drawn, as they have no speed: {', '.join(panel.without_speed)}")
    lines = [line for note in notes for line in textwrap.wrap(note, 80)]
    axes.annotate(
        *("\n".join(lines), (0, 1), (0, 4)), "axes fraction", "offset points", va="bottom", fontsize=7, color="#a04000"
    )
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=10, pad=6 + 11 * len(lines))


def _spread(axes: Axes, annotations: Sequence[Annotation]) -> None:
    """Move each name to the first place around its point where it is inside the axes and on nothing else."""
    inside = axes.bbox
    boxes = [Bbox.from_bounds(x - MARKER, y - MARKER, 2 * MARKER, 2 * MARKER) for x, y in _on_canvas(axes, annotations)]
    for text in annotations:
        for offset in (*LABEL_PLACES, LABEL_PLACES[0]):
            box = _place(text, offset)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if fits and not box.count_overlaps(boxes):
                break
        boxes.append(box)


def _on_canvas(axes: Axes, annotations: Sequence[Annotation]) -> list[tuple[float, float]]:
    """Where the points are, in pixels."""
    return [(float(x), float(y)) for x, y in (axes.transData.transform(text.xy) for text in annotations)]


def _place(text: Annotation, offset: tuple[int, int]) -> Bbox:
    """Move a name to an offset in points, and say which pixels it then covers."""
    text.set_position(offset)
    text.set_horizontalalignment("left" if offset[0] > 0 else "right" if offset[0] < 0 else "center")
    return text.get_window_extent()


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as a file of `kind` "png" or "svg", without a date in it."""
    out = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    figure.savefig(out, format=kind, metadata=metadata)
    return out.getvalue()
