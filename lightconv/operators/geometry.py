"""Geometry and memory formats: normalised arguments and output sizes, shared by operators and their fakes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightconv.kernels.window import Pair, Window


def is_integer(value: object) -> bool:
    """Return True if torch accepts a value as an integer argument. It does not accept a bool."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def pair(value: int | Sequence[int]) -> Pair | None:
    """Expand an int or a one-element sequence to a pair.

    Returns:
        The pair, or None for a value that torch might reject or read differently.
    """
    if not isinstance(value, list | tuple):
        value = (value,)  # type: ignore[assignment]
    assert isinstance(value, list | tuple)
    if len(value) not in {1, 2} or not all(map(is_integer, value)):
        return None
    # one element stands for both directions
    return (value[0], value[-1])


def convolution_window(
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> tuple[Window, Pair] | None:
    """Normalise a convolution's arguments.

    Returns:
        (window, extra), or None if torch would reject the arguments: torch then words the error. Extra is the number of
        zero rows below and zero columns on the right that padding "same" adds if both sides cannot be equal.
    """
    stride_pair = pair(stride)
    dilation_pair = pair(dilation)
    if stride_pair is None or dilation_pair is None or min(*stride_pair, *dilation_pair) < 1 or weight.dim() != 4:
        return None
    if isinstance(padding, str):
        if padding == "valid":
            return Window(stride_pair, (0, 0), dilation_pair), (0, 0)
        if padding != "same" or stride_pair != (1, 1):
            return None
        # an output as large as the image needs this many zeros on both sides together
        total_h = dilation_pair[0] * (weight.shape[2] - 1)
        total_w = dilation_pair[1] * (weight.shape[3] - 1)
        return Window(stride_pair, (total_h // 2, total_w // 2), dilation_pair), (total_h % 2, total_w % 2)
    padding_pair = pair(padding)
    if padding_pair is None or min(padding_pair) < 0:
        return None
    return Window(stride_pair, padding_pair, dilation_pair), (0, 0)


def pooling_window(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[Pair, Window] | None:
    """Normalise max-pooling's arguments.

    Returns:
        (kernel size, window), or None if torch would reject the arguments: torch then words the error.
    """
    if stride is None or (isinstance(stride, Sequence) and not stride):
        stride = kernel_size
    size_pair = pair(kernel_size)
    stride_pair = pair(stride)
    padding_pair = pair(padding)
    dilation_pair = pair(dilation)
    if size_pair is None or stride_pair is None or padding_pair is None or dilation_pair is None:
        return None
    if min(*size_pair, *stride_pair, *dilation_pair) < 1:
        return None
    # torch's limit: no window may lie in the padding entirely
    if not (0 <= padding_pair[0] <= size_pair[0] // 2 and 0 <= padding_pair[1] <= size_pair[1] // 2):
        return None
    return size_pair, Window(stride_pair, padding_pair, dilation_pair)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False) -> int:
    """Return the number of windows along one side: floor((h + 2 p - d (r - 1) - 1) / stride) + 1."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    count = (span + stride - 1) // stride + 1
    # torch drops a window that would start in the padding behind the image
    if (count - 1) * stride >= size + padding:
        return count - 1
    return count


def output_sizes(image: Sequence[int], kernel: Sequence[int], window: Window, ceil_mode: bool = False) -> Pair:
    """Return the number of windows vertically and horizontally."""
    (stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w) = window
    height = output_size(image[0], kernel[0], stride_h, padding_h, dilation_h, ceil_mode)
    width = output_size(image[1], kernel[1], stride_w, padding_w, dilation_w, ceil_mode)
    return height, width


def is_channels_last(*tensors: Tensor) -> bool:
    """Return True if torch would return channels_last: the image or the weight has its strides."""
    return any(suggest_memory_format(tensor) is torch.channels_last for tensor in tensors)


def empty_image(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """Allocate an (n, c, h, w) result in a memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def in_format(image: Tensor, channels_last: bool) -> Tensor:
    """Return the image in a memory format; copy it only if it has another one."""
    return image.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
