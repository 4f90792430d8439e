"""Convolution and max-pooling with torch.nn.functional's signatures, values, memory formats and error messages.

Without a kernel to serve it, a call goes to torch.nn.functional unchanged. It then costs nothing extra, compilers and
exporters see torch's own operators, and torch's own errors report bad arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lightconv.errors import InputError
from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend
from lightconv.operators import conv2d as _conv2d
from lightconv.operators import conv_block as _conv_block
from lightconv.operators import max_pool2d as _max_pool2d
from lightconv.operators.geometry import convolution_window, pair, pooling_window

__all__ = ["ACTIVATIONS", "Activation", "Padding", "Size", "activation_function", "conv2d", "conv_block", "max_pool2d"]

Size = int | Sequence[int]
"""One value for both directions, or (vertical, horizontal)."""
Padding = Literal["valid", "same"]
"""Padding by name: none, or as much as makes the output as large as the image."""
Activation = Literal["identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu"]
"""Name of an activation of `conv_block`."""

# GELU and SiLU decrease below zero: they do not commute with the maximum, so no kernel fuses them with pooling.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**_conv_block.NON_DECREASING, "gelu": F.gelu, "silu": F.silu}


def activation_function(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function of an activation's name.

    Raises:
        InputError: If the name is unknown.

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> lc.functional.activation_function("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def conv2d(
    input: Shaped[Tensor, "*n channels h w"],
    weight: Shaped[Tensor, "filters channels_per_group r s"],
    bias: Shaped[Tensor, " filters"] | None = None,
    stride: Size = 1,
    padding: Size | Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Shaped[Tensor, "*n filters oh ow"]:
    """Cross-correlate images with a bank of filters.

    Matches torch.nn.functional.conv2d in values, dtype, memory format, gradients and error messages.

    Args:
        input: batch of images, or one image.
        weight: filters.
        bias: one value per filter, added to every pixel of its map.
        stride: distance between neighbouring windows, in pixels.
        padding: zeros added on each side, in pixels; "valid" for none, "same" for an output as large as the image
            (stride 1 only).
        dilation: distance between neighbouring taps of a filter, in pixels.
        groups: number of independent groups of channels and filters.

    Returns:
        One map per filter.

    Raises:
        RuntimeError: If sizes do not fit each other; the message is torch's.
        TypeError: If an argument has the wrong type; the message is torch's.

    Shape:
        - input: (n, channels, h, w) or (channels, h, w)
        - weight: (filters, channels / groups, r, s)
        - bias: (filters,)
        - output: (n, filters, oh, ow) or (filters, oh, ow), with
          oh = floor((h + 2 * padding - dilation * (r - 1) - 1) / stride) + 1, and ow from w and s likewise

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> images = torch.randn(2, 3, 32, 32)
        >>> weight = torch.randn(8, 3, 5, 5)
        >>> lc.functional.conv2d(images, weight, stride=2, padding=2).shape
        torch.Size([2, 8, 16, 16])
    """
    if _may_use_kernel(input, weight, bias=bias):
        geometry = convolution_window(weight, stride, padding, dilation)
        if geometry is not None:
            images, filters, biases, window = _kernel_arguments(input, weight, bias, *geometry)
            if _conv2d.dispatch(images, filters, biases, window, groups).use_kernel:
                output = torch.ops.lightconv.conv2d(images, filters, biases, *window, groups)
                return _as_input(output, input)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> Tensor: ...


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool,
) -> Any: ...


def max_pool2d(
    input: Shaped[Tensor, "*n channels h w"],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> (
    Shaped[Tensor, "*n channels oh ow"] | tuple[Shaped[Tensor, "*n channels oh ow"], Int64[Tensor, "*n channels oh ow"]]
):
    """Keep the largest value of every window.

    Matches torch.nn.functional.max_pool2d, also for ties, NaN and -inf: the first of equal values gives the index, and
    NaN wins over every number.

    Args:
        input: batch of images, or one image.
        kernel_size: height and width of the window.
        stride: distance between neighbouring windows, in pixels; by default the window's own size.
        padding: -inf added on each side, in pixels, at most half a window.
        dilation: distance between neighbouring elements of a window, in pixels.
        ceil_mode: True to keep windows that hang over the lower and right edge.
        return_indices: True to return the plane index of every value too, h * width + w.

    Returns:
        The pooled maps, or (maps, plane indices).

    Raises:
        RuntimeError: If sizes do not fit each other; the message is torch's.
        TypeError: If an argument has the wrong type; the message is torch's.

    Shape:
        - input: (n, channels, h, w) or (channels, h, w)
        - output: (n, channels, oh, ow) or (channels, oh, ow), with
          oh = floor((h + 2 * padding - dilation * (r - 1) - 1) / stride) + 1 for a window of r rows, and ow likewise;
          ceil_mode rounds up instead, but drops a window that starts in the padding behind the image

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> image = torch.arange(16.0).view(1, 4, 4)
        >>> values, indices = lc.functional.max_pool2d(image, 2, return_indices=True)
        >>> values
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
        >>> indices
        tensor([[[ 5,  7],
                 [13, 15]]])
    """
    if isinstance(ceil_mode, bool) and isinstance(return_indices, bool) and _may_use_kernel(input):
        geometry = pooling_window(kernel_size, stride, padding, dilation)
        if geometry is not None:
            images = _as_batch(input)
            if _max_pool2d.dispatch(images, *geometry, ceil_mode, return_indices).use_kernel:
                return _max_pool2d_by_kernel(input, images, *geometry, ceil_mode, return_indices)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload]


def conv_block(
    input: Float[Tensor, "*n channels h w"],
    weight: Float[Tensor, "filters channels_per_group r s"],
    bias: Float[Tensor, " filters"] | None = None,
    stride: Size = 1,
    padding: Size | Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Activation = "relu",
    pool: Size = 1,
) -> Float[Tensor, "*n filters oh ow"]:
    """Convolve, activate and max-pool without overlap: the repeating unit of LeNet, AlexNet and VGG.

    Equals ``max_pool2d(activation(conv2d(...)), pool)``. A non-decreasing activation commutes with the maximum, so it
    is applied to the pooled map: the same values for 1 / pool**2 of the work. (If rounding makes two activations equal,
    the gradient goes to the larger input instead of the first.)

    One kernel computes the whole block if it can. `lightconv.operators.conv_block.operator_unsupported_reason` lists
    the exceptions; these are composed of convolution, activation and pooling.

    Args:
        input: batch of images, or one image.
        weight: filters.
        bias: one value per filter, added to every pixel of its map.
        stride: distance between neighbouring windows of the convolution, in pixels.
        padding: zeros added on each side, in pixels, or "valid" or "same", see `conv2d`.
        dilation: distance between neighbouring taps of a filter, in pixels.
        groups: number of independent groups of channels and filters.
        activation: name of the activation, a key of `ACTIVATIONS`.
        pool: size and stride of the pooling window, 1 for no pooling.

    Returns:
        One pooled map per filter.

    Raises:
        InputError: If the activation is unknown.
        RuntimeError: If sizes do not fit each other; the message is torch's.
        TypeError: If an argument has the wrong type; the message is torch's.

    Shape:
        - input: (n, channels, h, w) or (channels, h, w)
        - weight: (filters, channels / groups, r, s)
        - bias: (filters,)
        - output: (n, filters, oh, ow) or (filters, oh, ow), with
          oh = floor((floor((h + 2 * padding - dilation * (r - 1) - 1) / stride) + 1) / pool), and ow likewise

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> images = torch.randn(2, 1, 28, 28)
        >>> weight = torch.randn(6, 1, 5, 5)
        >>> lc.functional.conv_block(images, weight, padding=2, activation="tanh", pool=2).shape
        torch.Size([2, 6, 14, 14])
    """
    activation_function(activation)  # report an unknown name also if a kernel serves the call
    pool_size = pair(pool)
    # a block without activation and pooling is a convolution
    if activation == "identity" and pool_size == (1, 1):
        return conv2d(input, weight, bias, stride, padding, dilation, groups)
    if pool_size is not None and min(pool_size) > 0 and _may_use_kernel(input, weight, bias=bias):
        geometry = convolution_window(weight, stride, padding, dilation)
        if geometry is not None:
            images, filters, biases, window = _kernel_arguments(input, weight, bias, *geometry)
            options = (groups, activation, pool_size)
            if _conv_block.dispatch(images, filters, biases, window, *options).use_kernel:
                output, _ = torch.ops.lightconv.conv_block(images, filters, biases, *window, *options)
                return _as_input(output, input)
    maps = conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _activate_and_pool(maps, activation, pool)


def _may_use_kernel(*tensors: Tensor, bias: Tensor | None = None) -> bool:
    """Return False if torch serves a call of any geometry."""
    # torch reports an argument that is not a tensor
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            return False
    if bias is not None and not isinstance(bias, Tensor):
        return False
    return backend.wants_kernels(tensors[0].device.type) and backend.transform_unsupported_reason() is None


def _as_batch(input: Tensor) -> Tensor:
    # (c, h, w) -> (1, c, h, w)
    return input.unsqueeze(0) if input.dim() == 3 else input


def _as_input(output: Tensor, input: Tensor) -> Tensor:
    # (1, c, h, w) -> (c, h, w) if the input was one image
    return output.squeeze(0) if input.dim() == 3 else output


def _kernel_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, extra: Pair
) -> tuple[Tensor, Tensor, Tensor | None, Window]:
    """Prepare a convolution's arguments for a kernel: batched, padded, and cast by autocast.

    Dispatch depends on the dtypes, so the cast comes before it.

    Args:
        input: batch of images, or one image.
        weight: filters.
        bias: one value per filter, or None.
        window: stride, padding and dilation.
        extra: rows of zeros to add below, and columns of zeros to add on the right.
    """
    images = _as_batch(input)
    if any(extra):
        # torch counts from the last dimension: (left, right, top, bottom)
        images = F.pad(images, (0, extra[1], 0, extra[0]))
    device = input.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        images, weight, bias = _conv2d.cast_for_autocast(device, images, weight, bias)
    return images, weight, bias, window


def _max_pool2d_by_kernel(
    input: Tensor, images: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool, return_indices: bool
) -> Any:
    # Backward keeps uint8 window argmaxes instead of int64 plane indices if they fit and are not returned.
    plane_indices = return_indices or kernel_size[0] * kernel_size[1] > _max_pool2d.MAX_POSITIONS
    values, argmax = torch.ops.lightconv.max_pool2d(images, kernel_size, *window, ceil_mode, plane_indices)
    if return_indices:
        return _as_input(values, input), _as_input(argmax, input)
    return _as_input(values, input)


def _activate_and_pool(maps: Tensor, activation: Activation, pool: Size) -> Tensor:
    """Apply the rest of a block to the output of its convolution, which may be overwritten."""
    pools = pair(pool) != (1, 1)
    if activation == "relu":
        # in place: nobody else holds the maps
        return torch.relu_(max_pool2d(maps, pool) if pools else maps)
    activate = ACTIVATIONS[activation]
    if not pools:
        return activate(maps)
    # pooling first: the same values for 1 / pool**2 of the activation's work
    if activation in _conv_block.NON_DECREASING:
        return activate(max_pool2d(maps, pool))
    return max_pool2d(activate(maps), pool)
