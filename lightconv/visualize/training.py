"""Draw the course of training and its errors."""

from collections.abc import Sequence

from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor

from lightconv.text import printable


def learning_curve(rows: Sequence[dict[str, float]], title: str = "") -> Figure:
    """Draw loss and accuracy per epoch. A line marks the accuracy of the epoch with the lowest validation loss.

    Args:
        rows: metrics per epoch, as `lightconv.runs.read_metrics` reads them: "epoch", counted from 0, with
            "train/loss", "val/loss" and "val/accuracy". A metric may be missing.
        title: text above the figure.

    Example:
        >>> from lightconv import visualize
        >>> rows = [{"epoch": 0, "train/loss": 2.0, "val/loss": 1.8, "val/accuracy": 0.4}]
        >>> losses, accuracy = visualize.learning_curve(rows).axes
        >>> accuracy.get_title()
        '0.4000 in epoch 1, the one with the lowest loss'
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    draw_metric(losses, rows, "train/loss", label="training, as optimised")
    draw_metric(losses, rows, "val/loss", label="validation")
    draw_metric(accuracy, rows, "val/accuracy", label="validation")
    validated = [row for row in rows if "val/loss" in row]
    best = min(validated, key=lambda row: row["val/loss"], default={})
    if "val/accuracy" in best:
        accuracy.axhline(best["val/accuracy"], color="grey", linewidth=0.8, linestyle=":")
        text = f"{best['val/accuracy']:.4f} in epoch {best['epoch'] + 1:.0f}, the one with the lowest loss"
        accuracy.set_title(text, fontsize=10)
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy")
    for axes in (losses, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_metric(axes: Axes, rows: Sequence[dict[str, float]], name: str, label: str) -> None:
    """Draw a metric over the epochs that have it, counted from 1."""
    epochs, values = [], []
    for row in rows:
        if name in row:
            epochs.append(row["epoch"] + 1)
            values.append(row[name])
    axes.plot(epochs, values, marker=".", label=label)


def learning_rates(rates: Sequence[float], losses: Sequence[float], chosen: float) -> Figure:
    """Draw the loss over the learning rate of a range test.

    Args:
        rates: learning rate per step.
        losses: smoothed training loss per step.
        chosen: learning rate to mark.

    Example:
        >>> from lightconv import visualize
        >>> (axes,) = visualize.learning_rates([1e-3, 1e-2, 1e-1], [2.3, 1.9, 4.0], chosen=1e-2).axes
        >>> axes.get_title()
        'chosen: 0.01'
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(chosen, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", xscale="log", title=f"chosen: {chosen:g}")
    axes.grid(alpha=0.3)
    return figure


def confusion_matrix(counts: Num[Tensor, "k k"], classes: Sequence[str], title: str = "") -> Figure:
    """Draw how often images of each true class (rows) were predicted as each class (columns).

    Args:
        counts: number of images, ``(classes, classes)``.
        classes: name per class.
        title: text above the figure.

    Example:
        >>> import torch
        >>> from lightconv import visualize
        >>> (axes,) = visualize.confusion_matrix(torch.tensor([[9, 1], [2, 8]]), ["cat", "dog"]).axes
        >>> [text.get_text() for text in axes.texts]
        ['9', '1', '2', '8']
    """
    side = 2.5 + 0.5 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # The shades are shares of each true class, so that rare classes show. The numbers are counts.
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    display = ConfusionMatrixDisplay(shares.numpy(), display_labels=[printable(name) for name in classes])
    display.plot(ax=axes, cmap="Blues", colorbar=False, include_values=False, xticks_rotation="vertical")
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a dollar sign in a class name starts no formula
    for row, column in counts.nonzero().tolist():
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=shade, fontsize=9)
    axes.set_title(title)
    return figure
