"""torch.func.vmap for every operator: the mapped dimension becomes part of the batch, or of the groups.

A map over the images alone is a larger batch. Where every sample has filters of its own (as in per-sample gradients),
samples become groups: (n, samples * channels, h, w) images meet (samples * filters, channels, r, s) filters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_vmap

from lightconv.operators import conv2d, conv_block, max_pool2d  # noqa: F401 - which define the operators
from lightconv.operators.library import LIBRARY


def _front(tensor: Tensor | None, dim: int | None, samples: int) -> Tensor | None:
    """The mapped dimension first, repeated where there is none."""
    if tensor is None:
        return None
    return tensor.expand(samples, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _beside_images(tensor: Tensor | None, dim: int | None, samples: int) -> Tensor | None:
    """(samples, n, ...) as (samples * n, ...)."""
    front = _front(tensor, dim, samples)
    return None if front is None else front.flatten(0, 1)


def _beside_channels(tensor: Tensor | None, dim: int | None, samples: int) -> Tensor | None:
    """(samples, n, c, ...) as (n, samples * c, ...)."""
    front = _front(tensor, dim, samples)
    return None if front is None else front.transpose(0, 1).flatten(1, 2)


def _convolution(name: str) -> Any:
    def batched(info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
        operator, samples = getattr(torch.ops.lightconv, name), info.batch_size
        if in_dims[1] is None and in_dims[2] is None:
            results = operator(_beside_images(input, in_dims[0], samples), weight, bias, *options)
            return _unfolded(results, 0, samples), _unfolded_dims(results, 0)
        filters = _beside_images(weight, in_dims[1], samples)
        offsets = _beside_images(bias, in_dims[2], samples)
        window, groups, rest = options[:3], options[3], options[4:]
        images = _beside_channels(input, in_dims[0], samples)
        results = operator(images, filters, offsets, *window, groups * samples, *rest)
        return _unfolded(results, 1, samples), _unfolded_dims(results, 1)

    return batched


def _unfolded(results: Any, dim: int, samples: int) -> Any:
    def unfold(result: Tensor) -> Tensor:
        if result.dim() == 1:  # a block without bytes has none for any sample
            return result.new_empty([samples, 0])
        return result.unflatten(dim, (samples, result.shape[dim] // samples))

    return tuple(map(unfold, results)) if isinstance(results, tuple) else unfold(results)


def _unfolded_dims(results: Any, dim: int) -> Any:
    if not isinstance(results, tuple):
        return dim
    return tuple(0 if result.dim() == 1 else dim for result in results)


def _input_gradient(
    info: Any, in_dims: Any, grad: Any, code: Tensor | None, weight: Tensor, shape: list[int], *options: Any
) -> tuple[Tensor, int]:
    operator, samples = torch.ops.lightconv.conv2d_input_gradient, info.batch_size
    n, c, *size = shape
    if in_dims[2] is None:
        grad, code = (_beside_images(t, d, samples) for t, d in zip((grad, code), in_dims[:2], strict=True))
        return operator(grad, code, weight, [samples * n, c, *size], *options).unflatten(0, (samples, n)), 0
    grad, code = (_beside_channels(t, d, samples) for t, d in zip((grad, code), in_dims[:2], strict=True))
    window, groups, rest = options[:3], options[3] * samples, options[4:]
    filters = _beside_images(weight, in_dims[2], samples)
    return operator(grad, code, filters, [n, samples * c, *size], *window, groups, *rest).unflatten(1, (samples, c)), 1


def _weight_gradient(
    info: Any, in_dims: Any, grad: Any, code: Any, input: Any, shape: list[int], *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    samples, (filters, *rest_of_shape) = info.batch_size, shape
    grad, code, input = (_beside_channels(t, d, samples) for t, d in zip((grad, code, input), in_dims[:3], strict=True))
    window, groups, rest = options[:3], options[3] * samples, options[4:]
    weights, biases = torch.ops.lightconv.conv2d_weight_gradient(
        grad, code, input, [samples * filters, *rest_of_shape], *window, groups, *rest
    )
    return (weights.unflatten(0, (samples, filters)), biases.view(samples, -1)), (0, 0)


def _max_pool2d(info: Any, in_dims: Any, input: Tensor, *options: Any) -> tuple[Any, tuple[int, int]]:
    results = torch.ops.lightconv.max_pool2d(_beside_images(input, in_dims[0], info.batch_size), *options)
    return _unfolded(results, 0, info.batch_size), (0, 0)


def _max_pool2d_backward(
    info: Any, in_dims: Any, grad: Any, where: Any, shape: list[int], *options: Any
) -> tuple[Tensor, int]:
    samples, (n, *rest) = info.batch_size, shape
    grad, where = (_beside_images(t, d, samples) for t, d in zip((grad, where), in_dims[:2], strict=True))
    result = torch.ops.lightconv.max_pool2d_backward(grad, where, [samples * n, *rest], *options)
    return result.unflatten(0, (samples, n)), 0


for _name in ("conv2d", "conv_block"):
    register_vmap(f"lightconv::{_name}", _convolution(_name), lib=LIBRARY)
register_vmap("lightconv::conv2d_input_gradient", _input_gradient, lib=LIBRARY)
register_vmap("lightconv::conv2d_weight_gradient", _weight_gradient, lib=LIBRARY)
register_vmap("lightconv::max_pool2d", _max_pool2d, lib=LIBRARY)
register_vmap("lightconv::max_pool2d_backward", _max_pool2d_backward, lib=LIBRARY)
