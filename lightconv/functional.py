"""The face of the operators: torch.nn.functional's signatures, values, memory formats and error messages.

Calls that no kernel is to serve go to torch.nn.functional as they are: they cost nothing extra, compilers and
exporters see torch's own operators, and what torch would refuse is refused in torch's own words.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lightconv.errors import InputError
from lightconv.operators import backend
from lightconv.operators import conv2d as _conv2d
from lightconv.operators import conv_block as _conv_block
from lightconv.operators import max_pool2d as _max_pool2d
from lightconv.operators.geometry import convolution_window, pair, pooling_window

Size = int | Sequence[int]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = _conv_block.NON_DECREASING | {"gelu": F.gelu, "silu": F.silu}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Look an activation up by name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _kernels_wanted(*tensors: Tensor) -> bool:
    return (
        all(isinstance(tensor, Tensor) for tensor in tensors)
        and backend.wants_kernels(tensors[0].device.type)
        and backend.transform_unsupported_reason() is None
    )


def _batched(input: Tensor) -> Tensor:
    return input.unsqueeze(0) if input.dim() == 3 else input


def _prepared(input: Tensor, weight: Tensor, bias: Tensor | None, extra: Sequence[int]) -> list[Any]:
    """Images, filters and bias as the kernel will see them, by whose dtypes it is chosen."""
    images = _batched(input)
    if any(extra):
        images = F.pad(images, (0, extra[1], 0, extra[0]))
    device = input.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return _conv2d.lowered(device, images, weight, bias)
    return [images, weight, bias]


def conv2d(
    input: Shaped[Tensor, "*n channels h w"],
    weight: Shaped[Tensor, "filters channels_a_group r s"],
    bias: Shaped[Tensor, " filters"] | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Shaped[Tensor, "*n filters oh ow"]:
    """Cross-correlate images with a bank of filters.

    Matches torch.nn.functional.conv2d in values, dtype, memory format, gradients and error messages.

    Args:
        input: a batch of images, or one image.
        weight: the filters.
        bias: added to every pixel of its filter's map.
        stride: pixels between neighbouring windows.
        padding: pixels of zeros on each side, "valid" for none, "same" for a map as large as the image.
        dilation: pixels between neighbouring taps of a filter.
        groups: independent groups of channels and filters.

    Returns:
        One map a filter, oh = floor((h + 2 padding - dilation (r - 1) - 1) / stride) + 1 high.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    call = convolution_window(weight, stride, padding, dilation) if _kernels_wanted(*tensors) else None
    if call is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    window, extra = call
    images, filters, offsets = _prepared(input, weight, bias, extra)
    if not _conv2d.dispatch(images, filters, offsets, window, groups).kernel:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    output = torch.ops.lightconv.conv2d(images, filters, offsets, *window, groups)
    return output.squeeze(0) if input.dim() == 3 else output


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

    Matches torch.nn.functional.max_pool2d, ties, NaN and -inf included: the first of equal values gives the index,
    NaN wins over every number.

    Args:
        input: a batch of images, or one image.
        kernel_size: height and width of the window.
        stride: pixels between neighbouring windows, the window's own size by default.
        padding: pixels of -inf on each side, at most half a window.
        dilation: pixels between neighbouring elements of a window.
        ceil_mode: keep windows that hang over the lower and the right edge.
        return_indices: also return where in its h*w plane each value was found.

    Returns:
        The pooled maps, or (maps, indices).
    """
    flags = isinstance(ceil_mode, bool) and isinstance(return_indices, bool)
    call = pooling_window(kernel_size, stride, padding, dilation) if flags and _kernels_wanted(input) else None
    if call is None or not _max_pool2d.dispatch(images := _batched(input), *call, ceil_mode, return_indices).kernel:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload]
    kernel, window = call
    # nobody sees positions in the window: they are what backward keeps, where they fit a byte
    as_indices = return_indices or kernel[0] * kernel[1] > _max_pool2d.MAX_POSITIONS
    values, where = torch.ops.lightconv.max_pool2d(images, kernel, *window, ceil_mode, as_indices)
    if input.dim() == 3:
        values, where = values.squeeze(0), where.squeeze(0)
    return (values, where) if return_indices else values


def conv_block(
    input: Float[Tensor, "*n channels h w"],
    weight: Float[Tensor, "filters channels_a_group r s"],
    bias: Float[Tensor, " filters"] | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str = "relu",
    pool: Size = 1,
) -> Float[Tensor, "*n filters oh ow"]:
    """Convolve, activate and max-pool without overlap, the repeating unit of LeNet, AlexNet and VGG.

    Equals ``max_pool2d(activation(conv2d(...)), pool)``. A non-decreasing activation commutes with the maximum, so it
    is applied to the pooled map: the same values for 1 / pool**2 of the work. (Where rounding makes two activations
    equal, the gradient goes to the larger input instead of the first.) One kernel computes the whole block where it
    can: see `lightconv.operators.conv_block.operator_unsupported_reason` for where it cannot.

    Args:
        input: a batch of images, or one image.
        weight: the filters.
        bias: added to every pixel of its filter's map.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        activation: a name in ``ACTIVATIONS``.
        pool: size and stride of the pooling window, 1 for no pooling.

    Raises:
        InputError: for an unknown activation.
    """
    activate = activation_function(activation)
    size = pair(pool)
    if activation == "identity" and size == (1, 1):
        return conv2d(input, weight, bias, stride, padding, dilation, groups)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    wanted = size is not None and min(size) > 0 and _kernels_wanted(*tensors)
    call = convolution_window(weight, stride, padding, dilation) if wanted else None
    if call is not None:
        assert size is not None
        window, extra = call
        images, filters, offsets = _prepared(input, weight, bias, extra)
        if _conv_block.dispatch(images, filters, offsets, window, groups, activation, size).kernel:
            output, _ = torch.ops.lightconv.conv_block(images, filters, offsets, *window, groups, activation, size)
            return output.squeeze(0) if input.dim() == 3 else output
    maps = conv2d(input, weight, bias, stride, padding, dilation, groups)
    if activation == "relu":
        return torch.relu_(maps if size == (1, 1) else max_pool2d(maps, pool))  # the map is nobody else's
    if size == (1, 1):
        return activate(maps)
    if activation in _conv_block.NON_DECREASING:
        return activate(max_pool2d(maps, pool))
    return max_pool2d(activate(maps), pool)
