"""What every plot shares; matplotlib is loaded when a plot is asked for, and not before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008: colours that stay apart for every kind of colour vision, without yellow, which is pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*"
_DASHES = ("-", "--", ":")
_INSIDE = 6  # a longer legend stands beside the axes


def check_path(path: str | Path | None) -> None:
    """Refuse a file that cannot be drawn to, before any work is done; None is no file.

    ModuleNotFoundError: no matplotlib.  ValueError: a folder that is not there, or a suffix that names no picture.
    """
    if path is None:
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'odediff[plot]'", name="matplotlib") from None
    folder, suffix = Path(path).parent, Path(path).suffix.removeprefix(".").lower()
    if not folder.is_dir():
        raise ValueError(f"no folder {folder} to write {Path(path).name} to; make it first")
    if suffix not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"{path} names no kind of picture; end it in .png, .svg or .pdf")


def figure(columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many axes side by side; it belongs to nobody's pyplot."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(1.0 + 4.2 * columns, 4.2), dpi=150, layout="constrained")
    axes = list(made.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.grid(alpha=0.25, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
    return made, axes


def style(k: int) -> dict[str, Any]:
    """The look of the k-th line: colour and marker differ within seven lines, the dashes after them."""
    return {
        "color": PALETTE[k % 7],
        "marker": _MARKERS[k % 7],
        "linestyle": _DASHES[k // 7 % 3],
        "markersize": 4,
        "linewidth": 1.3,
    }


def shades(count: int) -> list[tuple[float, ...]]:
    """Colours of an ordered family of lines, dark to light; cividis looks the same to every kind of colour vision."""
    from matplotlib import colormaps

    return [tuple(colormaps["cividis"](k / max(1, count - 1) * 0.9)) for k in range(count)]


def over_rows(axes: Axes, label: str, *, log: bool) -> None:
    """Label axes over the rows of a plan, with whole numbers; a logarithmic axis covers whole decades."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    axes.set(xlabel="row", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log:
        axes.set_yscale("log")
        low, high = axes.dataLim.intervaly
        if 0 < low <= high:  # something is drawn
            first = math.floor(math.log10(low) + 1e-3)
            axes.set_ylim(0.8 * 10.0**first, 1.25 * 10.0 ** max(first + 1, math.ceil(math.log10(high) - 1e-3)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, title: str | None = None) -> None:
    """A legend, beside the axes where it is long."""
    many = len(axes.get_legend_handles_labels()[0]) > _INSIDE
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)} if many else {"loc": "best"}
    axes.legend(title=title, fontsize=8, title_fontsize=8, frameon=False, **place)


def save(made: Figure, path: str | Path) -> None:
    """Write the figure in the format that its file's suffix names."""
    made.savefig(path)
