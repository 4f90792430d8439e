"""Random convolution blocks of small integers, and their comparison with torch's operators."""

import random
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from helpers.support import in_layout
from torch import Tensor

import lightconv as lc
from lightconv.functional import ACTIVATIONS
from lightconv.kernels import launch
from lightconv.kernels.tiles import ARCHITECTURES
from lightconv.kernels.window import Window
from lightconv.operators import conv_block as operator
from lightconv.operators.geometry import in_format, is_channels_last

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "sliced", "expanded"]
SPECIAL = [float("nan"), float("inf"), -float("inf")]
STRIDES = [(1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (3, 2)]
EXACT = {"identity", "relu"}


class Block(NamedTuple):
    """Arguments of lightconv.functional.conv_block, and the architecture whose tiles and loaders serve the call."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str
    pool: tuple[int, int]
    architecture: str

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return input, weight and bias."""
        return self.input, self.weight, self.bias

    @property
    def options(self) -> tuple[Any, ...]:
        """Return the arguments after input, weight and bias."""
        return self.stride, self.padding, self.dilation, self.groups, self.activation, self.pool

    def by_torch(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the block by torch; pool first if rounding makes activations of a window equal."""
        # Contiguous, because torch 2.14 crashes on some groups of one-pixel-wide images with a channels_last weight.
        # In float32 without oneDNN, because on CPUs with matrix units its bfloat16 spreads NaN to other pixels.
        wide = (None if t is None else t.contiguous().float() for t in (input, weight, bias))
        with torch.backends.mkldnn.flags(enabled=False):
            maps = F.conv2d(*wide, self.stride, self.padding, self.dilation, self.groups).to(input.dtype)
        activate = ACTIVATIONS[self.activation]
        result, after = F.max_pool2d(activate(maps), self.pool, return_indices=True)
        pooled, before = F.max_pool2d(maps, self.pool, return_indices=True)
        if self.activation in EXACT or torch.equal(before, after):
            return result
        # in the last bit, torch's activations depend on a value's place in memory
        last_bit = torch.finfo(result.dtype).eps
        torch.testing.assert_close(activate(pooled), result, rtol=last_bit, atol=0, equal_nan=True)
        return activate(pooled)


def random_block(seed: int) -> Block:
    """Draw a block; the same for the same seed."""
    # a case is known by its number, so the order of the draws stays
    draw = random.Random(seed)
    torch.manual_seed(seed)
    number = draw.randint
    is_dense = draw.random() < 0.3  # tensor descriptors can load the shape
    groups, pool = draw.choice([1, 1, 2, 3]), (number(1, 3), number(1, 3))
    if is_dense:
        channels, filters = draw.choice([16, 32]), draw.choice([16, 32])
    else:
        channels, filters = number(1, 5), number(1, 5)
    kernel = (number(1, 3), number(1, 3))
    stride, dilation = (1, 1), (1, 1)
    if not is_dense:
        stride = draw.choice(STRIDES)
        dilation = (number(1, 2), number(1, 3))
    padding = (number(0, 3), number(0, 3))
    image = [
        max(1, d * (k - 1) + 1 - 2 * p + (q - 1) * s) + number(0, 4)
        for k, d, p, q, s in zip(kernel, dilation, padding, pool, stride, strict=True)
    ]
    dtype = draw.choice(DTYPES)
    images = in_layout(integers(number(1, 2), groups * channels, *image).to(dtype), draw.choice(LAYOUTS))
    weight = in_layout(integers(groups * filters, channels, *kernel).to(dtype), draw.choice(LAYOUTS))
    bias = in_layout(integers(1, 1, 1, groups * filters).to(dtype), draw.choice(LAYOUTS)).flatten()
    bias = draw.choice([None, bias, bias[:1].expand_as(bias)])
    if draw.random() < 0.2:
        images = images.clone(memory_format=torch.preserve_format)
        element = tuple(number(0, size - 1) for size in images.shape)
        images[element] = draw.choice(SPECIAL)
    return Block(
        input=images,
        weight=weight,
        bias=bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=draw.choice(list(operator.NON_DECREASING)),
        pool=pool,
        architecture=draw.choice(ARCHITECTURES),
    )


def integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape)


def check(block: Block) -> bool:
    """Assert that the fused kernels equal convolution, activation and pooling by torch, values and gradients.

    Returns:
        True if gradients were compared. They are compared only if all numbers are finite.
    """
    tensors = [None if t is None else t.detach().requires_grad_() for t in block.tensors]
    needed = [t for t in tensors if t is not None]
    expected = block.by_torch(*tensors)
    cotangent = torch.randint(-2, 3, expected.shape).to(expected.dtype)
    with lc.use_backend("triton"), mock.patch.object(launch, "INTERPRETED_AS", block.architecture):
        window = Window(block.stride, block.padding, block.dilation)
        reason = operator.operator_unsupported_reason(*tensors, window, block.groups, block.activation, block.pool)
        assert reason is None or is_depthwise(block)
        actual = lc.functional.conv_block(*tensors, *block.options)
        gradients = torch.autograd.grad(actual, needed, cotangent)
    assert_close(actual, expected, exactly=block.activation in EXACT)
    last = is_channels_last(*tensors[:2])
    assert moving_strides(actual) == moving_strides(in_format(expected, last))
    if not all(t.isfinite().all() for t in (expected, *needed)):
        return False
    for ours, torchs in zip(gradients, torch.autograd.grad(expected, needed, cotangent), strict=True):
        assert_close(ours, torchs, exactly=block.activation in EXACT)
    return True


def assert_close(actual: Tensor, expected: Tensor, exactly: bool) -> None:
    """Assert equality, up to the rounding of sums in another order unless exactly.

    The tolerance is at least that of values around 1: if tanh and sigmoid saturate, their derivatives are all rounding.
    """
    finite = expected[expected.isfinite()].abs()
    tolerance = 0 if exactly else 16 * torch.finfo(expected.dtype).eps
    scale = max(1.0, float(finite.max())) if finite.numel() else 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def moving_strides(tensor: Tensor) -> list[int]:
    """Return the strides along dimensions of more than one element: the others place no element."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def is_depthwise(block: Block) -> bool:
    return block.groups > 1 and block.weight.shape[1] == 1
