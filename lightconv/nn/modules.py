"""Drop-in subclasses of torch.nn's convolution and max-pooling, and the block that joins both."""

from typing import Any

import torch
from torch import Tensor

from lightconv import functional
from lightconv.functional import Activation, Size


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d on lightconv's operator.

    Arguments, parameters, padding modes, errors and state dict are those of torch.nn.Conv2d.

    Shape:
        - input: (n, in_channels, h, w) or (in_channels, h, w)
        - output: (n, out_channels, oh, ow) or (out_channels, oh, ow), with
          oh = floor((h + 2 * padding - dilation * (r - 1) - 1) / stride) + 1 for a filter of r rows, and ow likewise

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> conv = lc.nn.Conv2d(1, 6, kernel_size=5, padding=2)
        >>> conv(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 6, 28, 28])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _pad(self, input: Tensor) -> tuple[Tensor, Any]:
        """Write out every padding except zeros, as torch does; return the image and the padding left to add."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0


class MaxPool2d(torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on lightconv's operator.

    Arguments and errors are those of torch.nn.MaxPool2d.

    Shape:
        - input: (n, channels, h, w) or (channels, h, w)
        - output: (n, channels, oh, ow) or (channels, oh, ow), see `lightconv.functional.max_pool2d`

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> lc.nn.MaxPool2d(2)(torch.randn(2, 6, 28, 28)).shape
        torch.Size([2, 6, 14, 14])
    """

    def forward(self, input: Tensor) -> Any:
        """Return the pooled maps, or (maps, plane indices) if ``return_indices``."""
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class ConvBlock(Conv2d):
    """Convolution, activation and non-overlapping max-pooling: ``max_pool2d(activation(conv2d(x)), pool)``.

    A ConvBlock is a Conv2d, so its state dict is a Conv2d's: ``weight`` and ``bias``. See
    `lightconv.functional.conv_block`.

    Args:
        in_channels: channels of the images.
        out_channels: number of filters, the channels of the output.
        kernel_size: height and width of the filters.
        activation: name of the activation.
        pool: size and stride of the pooling window, 1 for no pooling.
        options: further arguments of torch.nn.Conv2d.

    Raises:
        InputError: If the activation is unknown.

    Shape:
        - input: (n, in_channels, h, w) or (in_channels, h, w)
        - output: (n, out_channels, oh, ow) or (out_channels, oh, ow), with
          oh = floor((floor((h + 2 * padding - dilation * (r - 1) - 1) / stride) + 1) / pool), and ow likewise

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> block = lc.nn.ConvBlock(1, 6, 5, padding=2, activation="relu", pool=2)
        >>> block(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 6, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        activation: Activation = "relu",
        pool: Size = 1,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        functional.activation_function(activation)  # raise here, not at the first batch
        self.activation: Activation = activation
        self.pool = pool

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        return functional.conv_block(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            pool=self.pool,
        )

    def extra_repr(self) -> str:
        """Return the convolution's settings, then activation and pool."""
        return f"{super().extra_repr()}, activation={self.activation}, pool={self.pool}"
