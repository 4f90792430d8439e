"""Arguments normalised once, output sizes and memory formats: the arithmetic shared by operators and fakes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightconv.kernels.window import Pair, Window


def is_integer(value: object) -> bool:
    """Whether torch takes this for an integer argument; it does not take a bool."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def pair(value: int | Sequence[int]) -> Pair | None:
    """Expand an int or a one-element sequence to a pair; None for what torch might refuse or read differently."""
    if not isinstance(value, list | tuple):
        value = (value,)  # type: ignore[assignment]
    assert isinstance(value, list | tuple)
    if len(value) not in {1, 2} or not all(map(is_integer, value)):
        return None
    return (value[0], value[-1])


def convolution_window(
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> tuple[Window, Pair] | None:
    """Normalise a convolution's arguments.

    Returns:
        The window, and the rows and columns of zeros that 'same' adds below and to the right where the two
        sides cannot be equal. None where torch would refuse the arguments: torch then words the error.
    """
    stride_pair, dilation_pair = pair(stride), pair(dilation)
    if stride_pair is None or dilation_pair is None or min(*stride_pair, *dilation_pair) < 1 or weight.dim() != 4:
        return None
    if isinstance(padding, str):
        if padding == "valid":
            return Window(stride_pair, (0, 0), dilation_pair), (0, 0)
        if padding != "same" or stride_pair != (1, 1):
            return None
        total_h, total_w = (d * (k - 1) for d, k in zip(dilation_pair, weight.shape[2:], strict=True))
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
    """Normalise max-pooling's arguments to (kernel size, window); None where torch would refuse them."""
    if stride is None or (isinstance(stride, Sequence) and not stride):
        stride = kernel_size
    kernel_pair, stride_pair, padding_pair, dilation_pair = map(pair, (kernel_size, stride, padding, dilation))
    if kernel_pair is None or stride_pair is None or padding_pair is None or dilation_pair is None:
        return None
    if min(*kernel_pair, *stride_pair, *dilation_pair) < 1:
        return None
    if not all(0 <= p <= k // 2 for p, k in zip(padding_pair, kernel_pair, strict=True)):
        return None
    return kernel_pair, Window(stride_pair, padding_pair, dilation_pair)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False) -> int:
    """How many windows fit along one side."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # ceil_mode drops a window that would start in the padding behind the image
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def output_sizes(image: Sequence[int], kernel: Sequence[int], window: Window, ceil_mode: bool = False) -> Pair:
    """How many windows fit vertically and horizontally."""
    height, width = (
        output_size(size, k, s, p, d, ceil_mode) for size, k, s, p, d in zip(image, kernel, *window, strict=True)
    )
    return height, width


def is_channels_last(*tensors: Tensor) -> bool:
    """Whether torch would answer in channels_last: when the image or the weight has its strides."""
    return any(suggest_memory_format(t) is torch.channels_last for t in tensors)


def empty_image(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """Allocate an (n, c, h, w) result in the asked memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def in_format(image: Tensor, channels_last: bool) -> Tensor:
    """The same image in the asked memory format, copied only if it is not."""
    return image.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
