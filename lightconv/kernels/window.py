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
    def of(cls, *pairs: Sequence[int]) -> "Window":
        """Build a window from the sequences that a dispatcher passes to an operator; lists equal no tuple."""
        stride, padding, dilation = ((first, second) for first, second in pairs)
        return cls(stride, padding, dilation)
