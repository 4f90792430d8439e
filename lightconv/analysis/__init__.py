"""Kernels judged without a GPU, and who serves what."""

from lightconv.analysis.explanation import Explanation, explain
from lightconv.analysis.traffic import Traffic, compare, traffic

__all__ = ["Explanation", "Traffic", "compare", "explain", "traffic"]
