"""The version of lightconv, read by the build, by run directories and by cache keys."""

__version__ = "0.1.0"
