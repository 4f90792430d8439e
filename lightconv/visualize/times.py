"""Draw the times of several contenders relative to one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def relative_times(rows: Sequence[Mapping[str, Any]], base: str, title: str = "") -> Figure:
    """Draw the time of each layer relative to one contender's, with a panel per pass.

    Args:
        rows: times, a mapping per layer and pass. "layer" and "pass" are names; every float is a time in any unit,
            keyed by its contender.
        base: contender to compare with, a line at 1.
        title: text above the figure.

    Example:
        >>> from lightconv import visualize
        >>> rows = [{"layer": "conv1", "pass": "forward", "lightconv": 1.5, "torch": 2.0}]
        >>> figure = visualize.relative_times(rows, base="torch")
        >>> [panel.get_title() for panel in figure.axes]
        ['forward']
    """
    passes: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        passes.setdefault(row["pass"], []).append(row)
    contenders = [name for name, value in rows[0].items() if isinstance(value, float) and name != base]
    # 0.16 inches per bar, and as much between layers
    bars = (len(contenders) + 1) * len(rows) / len(passes)
    figure = Figure(figsize=(11, 2 + 0.16 * bars), layout="constrained")
    panels = figure.subplots(1, len(passes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, rows_of_pass) in zip(panels, passes.items(), strict=True):
        draw_pass(axes, rows_of_pass, contenders, base)
        axes.set_title(name, fontsize=10)
    # The panels share their axis, so inverting one inverts all. The first layer is at the top.
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(contenders), frameon=False)
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def draw_pass(axes: Axes, rows: Sequence[Mapping[str, Any]], contenders: Sequence[str], base: str) -> None:
    """Draw the bars of one pass.

    Args:
        axes: panel to draw in.
        rows: times, a mapping per layer.
        contenders: names to draw, a bar each per layer.
        base: contender to compare with.
    """
    height = 1 / (len(contenders) + 1)
    for index, name in enumerate(contenders):
        # bars of a layer are centred on its number
        centres = np.arange(len(rows)) + (index - (len(contenders) - 1) / 2) * height
        # bars start at 1, so a quicker contender's goes to the left
        lengths = [row[name] / row[base] - 1 for row in rows]
        axes.barh(centres, lengths, height, left=1, label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows])
    axes.set_xscale("log", base=2)
    axes.update_datalim([(0.5, 0), (2, 0)])  # shows at least half to twice the time, with marks at 0.5, 1 and 2
    axes.margins(y=0.01)
    axes.autoscale_view()
    axes.set_xlabel(f"time / {base}'s: left of 1 is quicker")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.4)
