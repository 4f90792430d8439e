"""Where the layers of a network stand under a GPU's roof."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


class Point(NamedTuple):
    """A layer: multiplications and additions a byte that it must move, and a second that it is predicted to reach."""

    name: str
    intensity: float
    rate: float


def roofline(peak: float, bandwidth: float, points: Sequence[Point], title: str = "") -> Figure:
    """Draw the bounds of memory and arithmetic, and the layers below them.

    Args:
        peak: multiplications and additions a second.
        bandwidth: bytes a second.
        points: a layer each.
        title: above the figure.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    drawn = [point for point in points if point.intensity > 0]  # a pooling multiplies nothing
    ridge, intensities = peak / bandwidth, [point.intensity for point in drawn]
    across = np.geomspace(min([ridge / 30, *intensities]) / 2, max([ridge * 3, *intensities]) * 2, 200)
    axes.plot(across, np.minimum(across * bandwidth, peak) / 1e12, color="black")
    for (intensity, rate), numbers in _places(drawn).items():
        axes.plot(intensity, rate / 1e12, "o", color="C1", markersize=5)
        label = ", ".join(map(str, numbers))
        axes.annotate(label, (intensity, rate / 1e12), (5, -9), textcoords="offset points", fontsize=7)
    names = [Line2D([], [], linestyle="", label=f"{n} {point.name}") for n, point in enumerate(drawn, start=1)]
    key = {"fontsize": 7, "handlelength": 0, "handletextpad": 0, "frameon": False}
    figure.legend(handles=names, loc="outside right upper", ncols=1 + len(names) // 36, **key)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="operations a byte that has to be moved", ylabel="10¹² operations a second")
    axes.grid(which="both", alpha=0.2)
    return figure


def _places(points: Sequence[Point]) -> dict[tuple[float, float], list[int]]:
    """Where points are, those that would cover each other together, and their numbers from 1 on."""
    places: dict[tuple[float, float], tuple[tuple[float, float], list[int]]] = {}
    for number, point in enumerate(points, start=1):
        place = round(np.log10(point.intensity), 1), round(np.log10(point.rate), 1)
        places.setdefault(place, ((point.intensity, point.rate), []))[1].append(number)
    return dict(places.values())
