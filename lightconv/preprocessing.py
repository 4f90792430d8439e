"""What a network expects of its images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """The images that weights were trained on.

    Attributes:
        image_size: height and width in pixels.
        mean: of each channel, for pixels in 0..1; grey images are repeated for as many channels as are given.
        std: standard deviation of each channel, likewise.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
