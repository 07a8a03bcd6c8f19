"""Charts with matplotlib: the same numbers give the same bytes, as SVG for the page and as PNG.

Colours are those of Okabe and Ito, told apart by readers with colour-blindness; markers differ too.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

RowKind = Literal["arm", "base", "vae"]

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS: Mapping[RowKind, tuple[str, str, str]] = {
    "arm": ("o", BLUE, "arm (LoRA)"),
    "base": ("s", ORANGE, "base model, no LoRA"),
    "vae": ("D", GREEN, "its VAE alone"),
}
INK, FAINT = "#1d2733", "#5b6775"
PNG_DPI = 160
STYLE = {
    "svg.hashsalt": "mrisynth",  # else element ids are random
    "svg.fonttype": "path",  # the page brings no fonts
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "grid.color": "#dfe5eb",
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Bar:
    """One row of a score chart; an interval of None is not drawn."""

    name: str
    kind: RowKind
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ChartLine:
    """One line: (x, y) in drawing order."""

    name: str
    points: tuple[tuple[float, float], ...]


def draw_scores(
    bars: Sequence[Bar],
    *,
    floor: tuple[float, str] | None,
    xlabel: str,
) -> Figure:
    """Draw one row per arm, with a dashed line at the floor; the axis ends with the rows."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 1.3 + 0.27 * max(len(bars), 1)), layout="constrained")
        axes = figure.add_subplot()
        for row, bar in enumerate(bars):
            marker, colour, _ = MARKERS[bar.kind]
            if bar.low is not None and bar.high is not None:
                span = [bar.low, bar.high]
                axes.plot(span, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
                axes.plot(span, [row, row], "|", color=colour, markersize=8)
            axes.plot(bar.value, row, marker, color=colour, markersize=7.5, zorder=3)
        if floor is not None:
            value, name = floor
            axes.axvline(value, color=FAINT, linestyle=(0, (5, 3)), linewidth=1.4)
            axes.annotate(
                name,
                (value, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="left",
                color=FAINT,
                fontsize=9,
            )
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")
        kinds = [kind for kind in MARKERS if any(bar.kind == kind for bar in bars)]
        for kind in kinds:
            marker, colour, name = MARKERS[kind]
            axes.plot([], [], marker, color=colour, label=name)
        if kinds:
            figure.legend(loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=9)
    return figure


def draw_curves(
    curves: Sequence[ChartLine], *, ylabel: str, xlabel: str = "optimiser steps"
) -> Figure:
    """Draw lines over optimiser steps, told apart by colour and dash."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        axes = figure.add_subplot()
        for index, curve in enumerate(curves):
            axes.plot(
                [x for x, _ in curve.points],
                [y for _, y in curve.points],
                color=LINE_COLOURS[index % len(LINE_COLOURS)],
                linestyle=LINE_STYLES[(index // len(LINE_COLOURS)) % len(LINE_STYLES)],
                marker="." if len(curve.points) <= 30 else None,
                linewidth=1.5,
                label=curve.name,
            )
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid()
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def to_svg(figure: Figure) -> bytes:
    """Render as SVG, without a date."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """Render as PNG on white at `PNG_DPI` dots per inch."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": "mrisynth"})
    return buffer.getvalue()
