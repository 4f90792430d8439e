"""How training went and where it errs."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor


def learning_curve(rows: Sequence[dict[str, float]], title: str = "") -> Figure:
    """Draw loss and accuracy over the epochs.

    Args:
        rows: one dictionary an epoch, as `lightconv.runs.read_metrics` reads them.
        title: above the figure.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for axes, name, label in (
        (losses, "train/loss", "training, as optimised"),
        (losses, "val/loss", "validation"),
        (accuracy, "val/accuracy", "validation"),
    ):
        points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker=".", label=label)
    best = min((row for row in rows if "val/loss" in row), key=lambda row: row["val/loss"], default=None)
    if best and "val/accuracy" in best:
        accuracy.axhline(best["val/accuracy"], color="grey", linewidth=0.8, linestyle=":")
        title_of_best = f"{best['val/accuracy']:.4f} in epoch {best['epoch'] + 1:.0f}, the one with the lowest loss"
        accuracy.set_title(title_of_best, fontsize=10)
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy")
    for axes in (losses, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def learning_rates(rates: Sequence[float], losses: Sequence[float], chosen: float) -> Figure:
    """Draw the loss over the learning rate of a range test.

    Args:
        rates: of the steps.
        losses: smoothed, as many.
        chosen: the rate to mark.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(chosen, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", xscale="log", title=f"chosen: {chosen:g}")
    axes.grid(alpha=0.3)
    return figure


def confusion_matrix(counts: Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """Draw how often each class (rows) was taken for each (columns).

    Args:
        counts: (classes, classes) numbers of images.
        classes: their names.
        title: above the figure.
    """
    side = 2.5 + 0.5 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # shares of each true class give the shades, so that rare classes show; the numbers are counts
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    display = ConfusionMatrixDisplay(shares.numpy(), display_labels=classes)
    display.plot(ax=axes, cmap="Blues", colorbar=False, include_values=False, xticks_rotation="vertical")
    for row, column in counts.nonzero().tolist():
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=shade, fontsize=9)
    axes.set_title(title)
    return figure
