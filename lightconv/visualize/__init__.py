"""Matplotlib figures of images, training and speed."""

from lightconv.visualize.gallery import gallery
from lightconv.visualize.roofline import Point, roofline
from lightconv.visualize.times import relative_times
from lightconv.visualize.training import confusion_matrix, learning_curve, learning_rates

__all__ = ["Point", "confusion_matrix", "gallery", "learning_curve", "learning_rates", "relative_times", "roofline"]
