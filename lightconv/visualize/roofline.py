"""Draw a network's layers below a GPU's roofline.

Williams, Waterman, Patterson: Roofline: an insightful visual performance model for multicore architectures,
Communications of the ACM 52 (2009). A layer of arithmetic intensity x reaches at most ``min(x * bandwidth, peak)``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


class Point(NamedTuple):
    """A layer in a roofline.

    Attributes:
        name: name of the layer.
        intensity: multiplications and additions per byte that must be moved.
        rate: predicted multiplications and additions per second.

    Example:
        >>> from lightconv import visualize
        >>> visualize.Point("conv1", intensity=12.5, rate=3e13).name
        'conv1'
    """

    name: str
    intensity: float
    rate: float


def roofline(peak: float, bandwidth: float, points: Sequence[Point], title: str = "") -> Figure:
    """Draw the bounds by memory and arithmetic, and the layers below them.

    Layers are numbered; layers at nearly the same place share a marker. A layer without multiplications, such as a
    pooling, is not drawn.

    Args:
        peak: multiplications and additions per second of the GPU.
        bandwidth: bytes per second of its memory.
        points: layers to draw.
        title: text above the figure.

    Example:
        >>> from lightconv import visualize
        >>> points = [visualize.Point("conv1", 12.5, 3e13), visualize.Point("conv2", 400.0, 9e14)]
        >>> figure = visualize.roofline(peak=1e15, bandwidth=3e12, points=points)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['1 conv1', '2 conv2']
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    drawn = [point for point in points if point.intensity > 0]
    intensities = [point.intensity for point in drawn]
    ridge = peak / bandwidth  # intensity from which on arithmetic is the bound
    lowest = min([ridge / 30, *intensities]) / 2
    highest = max([ridge * 3, *intensities]) * 2
    across = np.geomspace(lowest, highest, 200)
    axes.plot(across, np.minimum(across * bandwidth, peak) / 1e12, color="black")
    for numbers in group_overlapping(drawn):
        first = drawn[numbers[0] - 1]
        place = (first.intensity, first.rate / 1e12)
        axes.plot(*place, "o", color="C1", markersize=5)
        axes.annotate(", ".join(map(str, numbers)), place, (5, -9), textcoords="offset points", fontsize=7)
    names = [Line2D([], [], linestyle="", label=f"{n} {point.name}") for n, point in enumerate(drawn, start=1)]
    figure.legend(
        handles=names,
        loc="outside right upper",
        ncols=1 + len(names) // 36,
        fontsize=7,
        handlelength=0,
        handletextpad=0,
        frameon=False,
    )
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="operations per byte moved", ylabel="10¹² operations per second")
    axes.grid(which="both", alpha=0.2)
    return figure


def group_overlapping(points: Sequence[Point]) -> list[list[int]]:
    """Group points whose markers would cover each other.

    Returns:
        The points' numbers, from 1 on, one list per group.
    """
    groups: dict[tuple[float, float], list[int]] = {}
    for number, point in enumerate(points, start=1):
        # a marker is about a tenth of a decade wide
        place = (round(np.log10(point.intensity), 1), round(np.log10(point.rate), 1))
        groups.setdefault(place, []).append(number)
    return list(groups.values())
