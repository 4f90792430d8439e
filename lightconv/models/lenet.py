"""LeNet-5 with ReLU and max-pooling: 61,706 parameters on 28x28 images.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, Proceedings of the IEEE 86
(1998). As it is taught today: ReLU for the scaled tanh, max-pooling for trainable averaging, all maps connected.
"""

from jaxtyping import Float
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.nn import ConvBlock


class LeNet(nn.Module):
    """Two blocks of convolution, ReLU and max-pooling, then three linear layers.

    The parameters have the names of the usual hand-written LeNet (``conv1``, ``conv2``, ``fc1``, ``fc2``, ``fc3``), so
    its state dict loads into plain torch.nn modules and the other way round.

    Args:
        classes: outputs.
        channels: channels of the images.
        image_size: height and width of the images, at least 12.
        width: factor on the number of filters and hidden units, 6, 16, 120 and 84 at 1.
        block: called as ``block(in, out, kernel_size, padding=..., activation="relu", pool=2)``.

    Raises:
        InputError: for images too small for two 5x5 filters and two poolings, or a width that leaves no filter.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        image_size: int = 28,
        width: float = 1.0,
        block: type[nn.Module] = ConvBlock,
    ) -> None:
        super().__init__()
        side = (image_size // 2 - 4) // 2
        if side < 1:
            raise InputError(f"LeNet needs images of at least 12x12 pixels, not {image_size}x{image_size}")
        if round(6 * width) < 1:
            raise InputError(f"width {width} leaves LeNet without filters: choose 0.2 or more")
        self.classes = classes
        first, second, third, fourth = (round(size * width) for size in (6, 16, 120, 84))
        self.conv1 = block(channels, first, 5, padding=2, activation="relu", pool=2)
        self.conv2 = block(first, second, 5, activation="relu", pool=2)
        self.fc1 = nn.Linear(second * side * side, third)
        self.fc2 = nn.Linear(third, fourth)
        self.fc3 = nn.Linear(fourth, classes)

    def forward(self, images: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        maps = self.conv2(self.conv1(images))
        hidden = self.fc1(maps.flatten(1)).relu()
        return self.fc3(self.fc2(hidden).relu())
