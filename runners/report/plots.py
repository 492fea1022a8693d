"""Plots, each drawn twice: on light and on dark paper. Colours are told apart by colour-blind eyes, and by markers."""

import io
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from srgym.runners.measure.statistics import Band, Interval
from srgym.runners.report.document import Figure

__all__ = ["curves", "forest", "plane", "profiles", "render"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Theme:
    """Paper, ink and line colours. The lines are Okabe and Ito's, lightened where the paper is dark."""

    paper: str
    ink: str
    grid: str
    lines: tuple[str, ...]

    def style(self, i: int) -> dict[str, Any]:
        """Colour, marker and dashes of series number `i`."""
        colour, turn = i % len(self.lines), i // len(self.lines)
        marker = _MARKERS[(i + turn) % len(_MARKERS)]
        return {"color": self.lines[colour], "marker": marker, "linestyle": _DASHES[turn % len(_DASHES)]}


LIGHT = Theme(
    "#ffffff", "#1d2126", "#dfe2e6",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F", "#E69F00", "#56B4E9", "#332288"),
)  # fmt: skip
DARK = Theme(
    "#1a1e22", "#e4e7ea", "#343b42",
    ("#5CB8F0", "#F28E4E", "#3CC79B", "#E3A3C6", "#A6ADB5", "#F2C14E", "#9AD4F5", "#A99BE8"),
)  # fmt: skip


def render(draw: Callable[[Any, Theme], None], title: str, caption: str = "", size: Any = (5.6, 3.7)) -> Figure:
    """Draw on one pair of axes, once for each paper.

    Args:
        draw: from axes and theme; it labels the axes, with units.
        size: in inches, at 150 dots an inch.
    """
    images = []
    for theme in (LIGHT, DARK):
        settings = {
            "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": theme.ink,
            "axes.labelcolor": theme.ink, "text.color": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
            "axes.facecolor": theme.paper, "figure.facecolor": theme.paper, "grid.color": theme.grid,
            "legend.frameon": False, "legend.fontsize": 9, "axes.grid": True, "axes.axisbelow": True,
            "lines.linewidth": 1.8, "lines.markersize": 4.5,
        }  # fmt: skip
        with matplotlib.rc_context(settings):
            canvas = Canvas(figsize=size, dpi=150, layout="constrained")
            FigureCanvasAgg(canvas)
            draw(canvas.add_subplot(), theme)
            buffer = io.BytesIO()
            canvas.savefig(buffer, format="png")
            images.append(buffer.getvalue())
    return Figure(images[0], images[1], title, caption)


def curves(
    series: Mapping[str, Band], x_label: str, y_label: str, title: str, caption: str = "", target: float | None = None,
    framed: Collection[str] = (), controls: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """Curves with their intervals as bands.

    Args:
        target: a level that is marked by a horizontal line.
        framed: the series that the picture is cut to, where another may run away from all of them; empty: to all. Then
            a band that is wider than the picture isn't drawn.
        controls: of some series, which other one each is the control of: thin and dotted in its colour, without a band.
    """
    of = {name: other for name, other in (controls or {}).items() if name in series and other in series}
    own = [name for name in series if name not in of]
    labels = len(own) + bool(of)
    heights = np.concatenate([series[name].value for name in framed]) if framed else np.zeros(1)
    spread = float(np.ptp(heights))

    def draw(axes: Any, theme: Theme) -> None:
        for name, band in series.items():
            style = theme.style(own.index(of.get(name, name)))
            if name in of:
                axes.plot(band.x, band.value, color=style["color"], linestyle=":", linewidth=1.1)
                continue
            every = max(1, len(band.x) // 8)
            axes.plot(band.x, band.value, label=name, markevery=every, **style)
            if np.isfinite(band.low).all() and not 0 < 1.9 * spread < np.median(band.high - band.low):
                axes.fill_between(band.x, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0)
        if target is not None:
            axes.axhline(target, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if spread > 0:
            axes.set_ylim(heights.min() - 0.6 * spread, heights.max() + 0.3 * spread)
        if of:
            axes.plot([], [], color=theme.ink, linestyle=":", linewidth=1.1, label="its control")
        if len(series) > 1:
            axes.legend() if labels <= 4 else axes.figure.legend(loc="outside lower left", ncols=3)

    return render(draw, title, caption, (5.6, 3.7 + 0.2 * max(0, -(-labels // 3) - 2)))


def forest(
    intervals: Mapping[str, Interval],
    x_label: str,
    title: str,
    caption: str = "",
    line: float = 0.0,
    limits: tuple[float, float] | None = None,
    margin: float = 0.0,
    width: float = 5.6,
) -> Figure:
    """Intervals under each other against a vertical line: filled where they exclude it, hollow where not.

    Args:
        line: where nothing would be. margin: a band so far to both sides of it, inside of which a difference doesn't
            matter. limits: of the axis; as the intervals are by default; a value beyond is an arrowhead at its edge.
        width: of the figure in inches; a label that would take half of it is broken into lines.
    """

    labels = [textwrap.fill(name, round(6 * width)) for name in intervals]

    def draw(axes: Any, theme: Theme) -> None:
        if margin:
            axes.axvspan(line - margin, line + margin, color=theme.grid, linewidth=0)
        for row, interval in enumerate(intervals.values()):
            clear = interval.low > line or interval.high < line
            colour = theme.lines[4] if not clear else theme.lines[0] if interval.value > line else theme.lines[1]
            if np.isfinite(interval.low):
                axes.plot([interval.low, interval.high], [row, row], color=colour, solid_capstyle="round")
            at = interval.value if limits is None else min(max(interval.value, limits[0]), limits[1])
            marker = "o" if at == interval.value or np.isnan(at) else ">" if at < interval.value else "<"
            face = colour if clear else theme.paper
            axes.plot([at], [row], marker, color=colour, markerfacecolor=face, clip_on=marker == "o", zorder=3)
        axes.axvline(line, color=theme.ink, linewidth=0.9)
        if limits is not None:
            axes.set_xlim(*limits)
        axes.set_yticks(range(len(intervals)), labels)
        axes.set_ylim(len(intervals) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)

    lines = sum(1 + label.count("\n") for label in labels)
    return render(draw, title, caption, size=(width, 0.9 + 0.2 * max(len(intervals), 2) + 0.16 * max(lines, 2)))


def plane(
    paths: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    points: Mapping[str, tuple[float, float]],
    x_label: str,
    y_label: str,
    title: str,
    caption: str = "",
) -> Figure:
    """The perception-fidelity plane: paths over training, an arrow at their end, and single points, hollow.

    Args:
        paths: (x, y) of each over training. points: (x, y) of what isn't trained.
    """

    def draw(axes: Any, theme: Theme) -> None:
        for i, (name, (x, y)) in enumerate(paths.items()):
            style = theme.style(i)
            axes.plot(x, y, color=style["color"], linestyle=style["linestyle"], marker=".", markersize=3)
            axes.plot(x[-1:], y[-1:], color=style["color"], marker=style["marker"], markersize=7, label=name)
            if len(x) > 1:
                arrow = {"arrowstyle": "-|>", "color": style["color"], "mutation_scale": 13, "shrinkB": 4}
                axes.annotate("", (x[-1], y[-1]), (x[-2], y[-2]), zorder=4, arrowprops=arrow)
        for i, (name, (x0, y0)) in enumerate(points.items(), len(paths)):
            style = theme.style(i)
            axes.plot([x0], [y0], linestyle="none", marker=style["marker"], markersize=7, markerfacecolor="none",
                      markeredgewidth=1.6, color=style["color"], label=name)  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(0.1)
        axes.figure.legend(loc="outside lower center", ncols=3)

    return render(draw, title, caption, size=(5.6, 4.6))


def profiles(series: Mapping[str, Band], x_label: str, title: str, caption: str = "") -> Figure:
    """Performance profiles: the share of scores above each threshold."""

    def draw(axes: Any, theme: Theme) -> None:
        for i, (name, band) in enumerate(series.items()):
            style = theme.style(i)
            axes.plot(band.x, band.value, label=name, markevery=max(1, len(band.x) // 8), **style)
            if np.isfinite(band.low).all():
                axes.fill_between(band.x, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0)
        axes.axvline(0, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share of (seed, context) above it")
        axes.legend()

    return render(draw, title, caption)
