"""Judgement of kernels without a GPU: memory traffic, machine code and predicted times."""

from lightconv.analysis.traffic import Traffic, compare, traffic
from lightconv.deprecated import moved

__all__ = ["Traffic", "compare", "traffic"]

__getattr__ = moved(__name__, dict.fromkeys(("Explanation", "explain"), "lightconv.surgery.explain"))
