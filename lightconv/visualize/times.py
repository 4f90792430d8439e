"""Who is quicker, and by how much."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def relative_times(rows: Sequence[Mapping[str, Any]], base: str, title: str = "") -> Figure:
    """Draw the times of each layer relative to one contender's, a panel for each pass.

    Args:
        rows: dictionaries with a "layer", a "pass" and, by the name of each contender, its time.
        base: the contender to which the others are compared, a line at 1.
        title: above the figure.
    """
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    names = [name for name, value in rows[0].items() if isinstance(value, float) and name != base]
    layers = len(rows) / len(passes)
    figure = Figure(figsize=(11, 2 + 0.16 * layers * (len(names) + 1)), layout="constrained")
    panels = figure.subplots(1, len(passes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, passes, strict=True):
        _draw(axes, [row for row in rows if row["pass"] == name], names, base)
        axes.set_title(name, fontsize=10)
    panels[0].invert_yaxis()  # shared: the first layer at the top
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], base: str) -> None:
    height = 1 / (len(names) + 1)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * height for place in range(len(rows))]
        longer = [row[name] / row[base] - 1 for row in rows]
        axes.barh(places, longer, height, left=1, label=name)  # from 1 on: left is quicker
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows])
    axes.set_xscale("log", base=2)
    axes.update_datalim([(0.5, 0), (2, 0)])  # at least half to twice the time, with marks at 0.5, 1 and 2
    axes.margins(y=0.01)
    axes.autoscale_view()
    axes.set_xlabel(f"time / {base}'s: left of 1 is quicker")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.4)
