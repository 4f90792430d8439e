"""torch.func.vmap for every operator: the mapped dimension becomes part of the batch, or of the groups.

A map over the images alone is a larger batch. If every sample has filters of its own, as for per-sample gradients,
samples become groups: (n, samples * channels, h, w) images and (samples * filters, channels, r, s) filters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_vmap

from lightconv.operators import conv2d, conv_block, max_pool2d  # noqa: F401 - define the operators
from lightconv.operators.library import LIBRARY


def _move_to_front(tensor: Tensor, dim: int | None, samples: int) -> Tensor:
    """Make the mapped dimension the first, and repeat a tensor that has none."""
    if dim is None:
        return tensor.expand(samples, *tensor.shape)
    return tensor.movedim(dim, 0)


def _merge_into_batch(tensor: Tensor | None, dim: int | None, samples: int) -> Any:
    """Return a tensor with samples merged into its first dimension: (samples, n, ...) -> (samples * n, ...)."""
    if tensor is None:
        return None
    return _move_to_front(tensor, dim, samples).flatten(0, 1)


def _merge_into_channels(tensor: Tensor | None, dim: int | None, samples: int) -> Any:
    """Return a tensor with samples merged into its channels: (samples, n, c, ...) -> (n, samples * c, ...)."""
    if tensor is None:
        return None
    return _move_to_front(tensor, dim, samples).transpose(0, 1).flatten(1, 2)


def _split_samples(result: Tensor, dim: int, samples: int) -> tuple[Tensor, int]:
    """Undo a merge: (samples * n, ...) -> (samples, n, ...), or (n, samples * c, ...) -> (n, samples, c, ...).

    Returns:
        (result, dimension of the samples).
    """
    # the empty tensor of a block without an argmax
    if result.dim() == 1:
        return result.new_empty([samples, 0]), 0
    return result.unflatten(dim, (samples, result.shape[dim] // samples)), dim


def _split_all(results: Any, dim: int, samples: int) -> Any:
    if not isinstance(results, tuple):
        return _split_samples(results, dim, samples)
    tensors, dims = zip(*[_split_samples(result, dim, samples) for result in results], strict=True)
    return tensors, dims


def _multiply_groups(options: tuple[Any, ...], samples: int) -> tuple[Any, ...]:
    """Give every sample its own groups, in a convolution's arguments after its tensors and shapes."""
    stride, padding, dilation, groups, *rest = options
    return stride, padding, dilation, groups * samples, *rest


def _batch_convolution(
    operator: Any,
    info: Any,
    in_dims: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *options: Any,
) -> Any:
    samples = info.batch_size
    input_dim, weight_dim, bias_dim, *_ = in_dims
    if weight_dim is None and bias_dim is None:
        # the samples share their filters: (samples * n, c, h, w)
        results = operator(_merge_into_batch(input, input_dim, samples), weight, bias, *options)
        return _split_all(results, 0, samples)
    # every sample has its own filters: (n, samples * c, h, w) images, (samples * k, c, r, s) filters
    results = operator(
        _merge_into_channels(input, input_dim, samples),
        _merge_into_batch(weight, weight_dim, samples),
        _merge_into_batch(bias, bias_dim, samples),
        *_multiply_groups(options, samples),
    )
    return _split_all(results, 1, samples)


@register_vmap("lightconv::conv2d", lib=LIBRARY)
def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
    return _batch_convolution(torch.ops.lightconv.conv2d, info, in_dims, *arguments)


@register_vmap("lightconv::conv_block", lib=LIBRARY)
def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
    return _batch_convolution(torch.ops.lightconv.conv_block, info, in_dims, *arguments)


@register_vmap("lightconv::conv2d_input_gradient", lib=LIBRARY)
def _(
    info: Any, in_dims: Any, grad: Tensor, argmax: Tensor | None, weight: Tensor, shape: list[int], *options: Any
) -> tuple[Tensor, int]:
    operator = torch.ops.lightconv.conv2d_input_gradient
    samples = info.batch_size
    grad_dim, argmax_dim, weight_dim, *_ = in_dims
    n, c, *size = shape
    if weight_dim is None:
        # the samples share their filters: (samples * n, c, h, w)
        grad = _merge_into_batch(grad, grad_dim, samples)
        argmax = _merge_into_batch(argmax, argmax_dim, samples)
        return _split_samples(operator(grad, argmax, weight, [samples * n, c, *size], *options), 0, samples)
    # every sample has its own filters: (n, samples * c, h, w)
    grad_input = operator(
        _merge_into_channels(grad, grad_dim, samples),
        _merge_into_channels(argmax, argmax_dim, samples),
        _merge_into_batch(weight, weight_dim, samples),
        [n, samples * c, *size],
        *_multiply_groups(options, samples),
    )
    return _split_samples(grad_input, 1, samples)


@register_vmap("lightconv::conv2d_weight_gradient", lib=LIBRARY)
def _(
    info: Any, in_dims: Any, grad: Tensor, argmax: Tensor | None, input: Tensor, shape: list[int], *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    samples = info.batch_size
    grad_dim, argmax_dim, input_dim, *_ = in_dims
    filters, *filter_shape = shape
    # every sample has a gradient of its own: (samples * k, c, r, s), (samples * k,)
    grad_weight, grad_bias = torch.ops.lightconv.conv2d_weight_gradient(
        _merge_into_channels(grad, grad_dim, samples),
        _merge_into_channels(argmax, argmax_dim, samples),
        _merge_into_channels(input, input_dim, samples),
        [samples * filters, *filter_shape],
        *_multiply_groups(options, samples),
    )
    # (samples * k, ...) -> (samples, k, ...); an empty bias gradient becomes (samples, 0)
    return (grad_weight.unflatten(0, (samples, filters)), grad_bias.view(samples, -1)), (0, 0)


@register_vmap("lightconv::max_pool2d", lib=LIBRARY)
def _(info: Any, in_dims: Any, input: Tensor, *options: Any) -> Any:
    images = _merge_into_batch(input, in_dims[0], info.batch_size)
    return _split_all(torch.ops.lightconv.max_pool2d(images, *options), 0, info.batch_size)


@register_vmap("lightconv::max_pool2d_backward", lib=LIBRARY)
def _(info: Any, in_dims: Any, grad: Tensor, argmax: Tensor, shape: list[int], *options: Any) -> tuple[Tensor, int]:
    samples = info.batch_size
    grad_dim, argmax_dim, *_ = in_dims
    n, *image_shape = shape
    grad_input = torch.ops.lightconv.max_pool2d_backward(
        _merge_into_batch(grad, grad_dim, samples),
        _merge_into_batch(argmax, argmax_dim, samples),
        [samples * n, *image_shape],
        *options,
    )
    return _split_samples(grad_input, 0, samples)
