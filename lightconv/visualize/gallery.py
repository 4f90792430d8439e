"""Many images side by side."""

from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

_SIDE = 1.1  # of an image, in inches


def gallery(images: Float[Tensor, "rows columns c h w"], captions: Sequence[Sequence[str]], title: str = "") -> Figure:
    """Draw images in rows, the first of each row set apart: the original of the others.

    Args:
        images: grey or RGB, in 0..1; what lies outside is drawn as black or white.
        captions: below each image; all but the first of a row only where they differ from it.
        title: above the figure.
    """
    rows, columns, _, height, width = images.shape
    lines = max(caption.count("\n") + 1 for row in captions for caption in row)
    size = (_SIDE * (columns + 0.3), (_SIDE * height / width + 0.15 * lines) * rows + 0.4)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    panels = figure.subplots(rows, columns, squeeze=False)
    pixels = images.clamp(0, 1).permute(0, 1, 3, 4, 2).numpy()
    for row in range(rows):
        for column, axes in enumerate(panels[row]):
            axes.imshow(pixels[row, column], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(column == 0)
            if column == 0 or captions[row][column] != captions[row][0]:
                axes.set_xlabel(captions[row][column], fontsize=7, labelpad=2)
    panels[0, 0].set_title("original", fontsize=8, pad=3)
    figure.suptitle(title, fontsize=10)
    return figure
