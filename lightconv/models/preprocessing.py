"""Moved to `lightconv.preprocessing`. Pickles of pretrained networks written by version 0.1.0 name this module."""

from lightconv.deprecated import moved

__getattr__ = moved(__name__, {"Preprocessing": "lightconv.preprocessing"})
