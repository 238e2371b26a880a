"""The figures of `bench kernels`: how near rows come to the roofline, and how far ahead of their baselines they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from bench.kernel_speed.report import kind_of_row, speed_up, timed
from bench.plots import COLOURS, DPI, STYLE, figure_bytes
from bench.records import Measurement

INCHES = (7.2, 4.6)
GREY = "#666666"


def kernel_plots(rows: Sequence[Measurement], title: str) -> dict[str, bytes]:
    """Draw both figures, as files by name: "roofline.png", "speed-up.svg"; empty where nothing was timed."""
    drawable = timed(rows)
    if not drawable:
        return {}
    files: dict[str, bytes] = {}
    with style.context(STYLE, after_reset=True):
        for name, draw in (("roofline", _roofline), ("speed-up", _speed_ups)):
            figure = Figure(INCHES, dpi=DPI, layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            draw(axes, drawable)
            axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
            files |= {f"{name}.{kind}": figure_bytes(figure, kind) for kind in ("png", "svg")}
    return files


def _by_kind(rows: Sequence[Measurement]) -> Mapping[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for row in rows:
        found.setdefault(kind_of_row(row), []).append(row)
    return dict(sorted(found.items()))


def _roofline(axes: Axes, rows: Sequence[Measurement]) -> None:
    """Operations per second against operations per byte; the roofs are those that the same run measured."""
    rows = [row for row in rows if "flops" in row.details]
    if not rows:
        axes.set_axis_off()
        return
    intensities = [row.details["flops"] / row.details["moved_bytes"] for row in rows]
    ends = min(intensities) / 2, max(intensities) * 2
    copy_rate = max(row.details["copy_bytes_per_s"] for row in rows)
    rates = {str(row.case["dtype"]): row.details["matmul_flops_per_s"] for row in rows}
    for dtype, rate in sorted(rates.items()):
        ridge = rate / copy_rate
        points = sorted({ends[0], min(max(ridge, ends[0]), ends[1]), ends[1]})
        axes.plot(points, [min(rate, copy_rate * x) / 1e12 for x in points], color=GREY, linewidth=1)
        axes.annotate(
            *(f"{dtype} matrix product", (ends[1], min(rate, copy_rate * ends[1]) / 1e12), (-2, 3)),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=GREY,
        )
    for colour, (kind, found) in zip(COLOURS * 2, _by_kind(rows).items(), strict=False):
        xs = [row.details["flops"] / row.details["moved_bytes"] for row in found]
        ys = [row.details["flops"] / (row.value or 1.0) / 1e9 for row in found]
        axes.plot(xs, ys, "o", color=colour, markersize=4, alpha=0.8, label=kind)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that has to be moved")
    axes.set_ylabel("TFLOP/s of the least arithmetic")
    axes.legend(fontsize=7, frameon=False)


def _speed_ups(axes: Axes, rows: Sequence[Measurement]) -> None:
    """Each row's fastest baseline over ours, in order, by kind."""
    start = 0
    for colour, (kind, found) in zip(COLOURS * 2, _by_kind(rows).items(), strict=False):
        ratios = sorted(speed_up(row) or 1.0 for row in found)
        places = range(start, start + len(ratios))
        axes.vlines(places, 1.0, ratios, color=colour, linewidth=1, alpha=0.6)
        axes.plot(places, ratios, "o", color=colour, markersize=4, label=f"{kind} ({len(ratios)})")
        start += len(ratios) + 2
    axes.axhline(1.0, color=GREY, linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([])
    axes.set_ylabel("fastest baseline / ours →")
    axes.set_xlabel("rows, slowest first within a kind")
    axes.legend(fontsize=7, frameon=False)
