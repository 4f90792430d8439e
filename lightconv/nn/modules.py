"""Drop-in subclasses of torch.nn's convolution and max-pooling, and the block made of both."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightconv import functional


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d on lightconv's operator: the same arguments, parameters, padding modes and state dict."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._padded(input)
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The image and what is left to pad: other paddings than zeros are written out beforehand, as in torch."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0


class MaxPool2d(torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on lightconv's operator."""

    def forward(self, input: Tensor) -> Any:
        """Pool a (n, c, h, w) batch or a (c, h, w) image; with ``return_indices``, return (maps, indices)."""
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

    A Conv2d by inheritance, so its state dict is a Conv2d's: ``weight`` and ``bias``.

    Args:
        in_channels: channels of the images.
        out_channels: filters, the channels of the result.
        kernel_size: height and width of the filters.
        activation: "identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu" or "silu".
        pool: size and stride of the pooling window, 1 for none.
        options: torch.nn.Conv2d's further arguments.

    Raises:
        InputError: for an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        activation: str = "relu",
        pool: int | Sequence[int] = 1,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        functional.activation_function(activation)  # an unknown one is an error here, not at the first batch
        self.activation = activation
        self.pool = pool

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._padded(input)
        return functional.conv_block(
            input, weight, bias, self.stride, padding, self.dilation, self.groups, self.activation, self.pool
        )

    def extra_repr(self) -> str:
        """The convolution's settings, then the block's own."""
        return f"{super().extra_repr()}, activation={self.activation}, pool={self.pool}"
