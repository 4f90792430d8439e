"""Draw many images side by side."""

from collections.abc import Sequence
from itertools import chain

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from lightconv.text import printable

_SIDE = 1.1  # width of an image, in inches


def gallery(images: Float[Tensor, "rows columns c h w"], captions: Sequence[Sequence[str]], title: str = "") -> Figure:
    """Draw images in rows. The first image of a row is the original of the others, and has a frame.

    Args:
        images: grey or RGB pixels in 0..1, ``(rows, columns, c, h, w)``; values outside are drawn as black or white.
        captions: text below each image. A caption equal to the first of its row is drawn only there.
        title: text above the figure.

    Returns:
        The figure, 1.1 inches per image wide.

    Example:
        >>> import torch
        >>> from lightconv import visualize
        >>> figure = visualize.gallery(torch.rand(1, 2, 3, 8, 8), [["cat", "dog"]], title="augmented")
        >>> [panel.get_xlabel() for panel in figure.axes]
        ['cat', 'dog']
    """
    rows, columns, _, height, width = images.shape
    most_lines = max(caption.count("\n") + 1 for caption in chain.from_iterable(captions))
    # per row the image and 0.15 inches per line of its caption; 0.4 inches for the title
    row_height = _SIDE * height / width + 0.15 * most_lines
    figure = Figure(
        figsize=(_SIDE * (columns + 0.3), row_height * rows + 0.4),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    # (rows, columns, c, h, w) -> (rows, columns, h, w, c), as matplotlib expects it
    pixels = images.clamp(0, 1).permute(0, 1, 3, 4, 2).numpy()
    for row in range(rows):
        for column, axes in enumerate(panels[row]):
            axes.imshow(pixels[row, column], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(column == 0)
            if column == 0 or captions[row][column] != captions[row][0]:
                axes.set_xlabel(printable(captions[row][column]), fontsize=7, labelpad=2, parse_math=False)
    panels[0, 0].set_title("original", fontsize=8, pad=3)
    figure.suptitle(title, fontsize=10)
    return figure
