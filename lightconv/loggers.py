"""Old home of the loggers of a run, which live in ``lightconv.runs`` today."""

from lightconv.deprecated import moved

__getattr__ = moved(
    __name__,
    {
        "MetricsTable": "lightconv.runs",
        "read_metrics": "lightconv.runs",
        "tensorboard_if_installed": "lightconv.runs",
    },
)
