"""LeNet-5 with ReLU and max-pooling: 61,706 parameters on 28x28 images.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, Proceedings of the IEEE 86
(1998). This is the form taught today: ReLU instead of the scaled tanh, max-pooling instead of trainable averaging, and
every map of the second convolution connected to every map of the first.
"""

from jaxtyping import Float
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.nn import ConvBlock


class LeNet(nn.Module):
    """Two blocks of convolution, ReLU and max-pooling, then three linear layers.

    The parameters have the names of the usual hand-written LeNet (``conv1``, ``conv2``, ``fc1``, ``fc2``, ``fc3``), so
    state dicts are interchangeable with one made of torch.nn modules.

    Args:
        classes: number of classes, the length of the output.
        channels: channels of the images.
        image_size: height and width of the images in pixels, at least 12.
        width: factor on the number of filters and hidden units; 1 means 6, 16, 120 and 84.
        block: class of the two blocks, called as ``block(in, out, kernel_size, padding=..., activation="relu",
            pool=2)``.

    Shape:
        - Input: ``(n, channels, image_size, image_size)``.
        - Output: logits, ``(n, classes)``.

    Raises:
        InputError: If the images are too small for two 5x5 filters and two poolings, or if the width leaves no filter.

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> model = lc.models.LeNet(classes=10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in model.parameters())
        61706
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
        # conv1 pads and keeps the side, conv2 takes 4 pixels off, each pooling halves it
        side = (image_size // 2 - 4) // 2
        if side < 1:
            raise InputError(f"image_size={image_size}: LeNet needs images of at least 12x12 pixels")
        if round(6 * width) < 1:
            raise InputError(f"width={width} leaves LeNet without filters: choose 0.2 or more")
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
        # (n, c, h, w) -> (n, c * h * w)
        hidden = self.fc1(maps.flatten(1)).relu()
        return self.fc3(self.fc2(hidden).relu())
