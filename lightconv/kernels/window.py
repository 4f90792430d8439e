"""Geometry of a sliding window, passed whole from `lightconv.functional` to a launch."""

from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]
"""A (vertical, horizontal) pair."""


class Window(NamedTuple):
    """Stride, padding and dilation of a filter or a pooling window, each a (vertical, horizontal) pair.

    Attributes:
        stride: distance between neighbouring windows, in pixels.
        padding: zeros (for pooling -inf) added on each side of the image, in pixels.
        dilation: distance between neighbouring taps of a window, in pixels.
    """

    stride: Pair
    padding: Pair
    dilation: Pair

    @classmethod
    def of(cls, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> "Window":
        """Build a window from the lists that a dispatcher passes to an operator. A list equals no tuple."""
        return cls((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))
