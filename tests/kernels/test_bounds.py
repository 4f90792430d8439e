"""No kernel computes an address outside its tensors; and the check that says so catches kernels that do."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from helpers.blocks import random_block
from helpers.bounds import AddressError, checked_addresses
from helpers.mutants import mutants, put_in_place
from helpers.support import leaves
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import interpreter_builder
from triton.tools.tensor_descriptor import TensorDescriptor

import lightconv as lc
from lightconv.kernels import launch

SIZE, BLOCK = 12, 16


@triton.jit
def copy(x, y, size, block: tl.constexpr, shift: tl.constexpr, bound: tl.constexpr, clamp: tl.constexpr):
    element = tl.arange(0, block)
    inside = element + shift < size + bound
    source = element + shift
    if clamp:
        source, element = tl.where(inside, source, 0), tl.where(inside, element, 0)
    tl.store(y + element, tl.load(x + source, mask=inside), mask=inside)


@triton.jit
def store_at(y, offset):
    tl.store(y + offset, 1.0)


@triton.jit
def copy_pair(tensors, offset):
    tl.store(tensors[1], tl.load(tensors[0] + offset))


@triton.jit
def copy_described(x, y, start: tl.constexpr, block: tl.constexpr):
    tl.store(y + tl.arange(0, block), x.load([start]))


@triton.jit
def copy_through_a_descriptor(x, y, size, block: tl.constexpr):
    described = tl.make_tensor_descriptor(x, [size], [1], [block])
    tl.store(y + tl.arange(0, block), described.load([0]))


@triton.jit
def add_atomically(y):
    tl.atomic_add(y, 1.0)


def copied(shift: int = 0, bound: int = 0, clamp: bool = True, stride: int = 1) -> torch.Tensor:
    """Copy 12 elements by a block of 16."""
    x, y = torch.arange(64.0)[16 : 16 + SIZE * stride : stride], torch.zeros(SIZE)
    copy[(1,)](x, y, SIZE, BLOCK, shift, bound, clamp)
    return y


def test_a_right_kernel_passes_and_computes_the_same():
    with checked_addresses() as launched:
        assert torch.equal(copied(), torch.arange(16.0, 28.0))
    assert launched == ["copy"]


# every wrong address is inside the memory that x is a part of, so nothing but its own bounds can tell
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"bound": 1}, r"copy, program \(0, 0, 0\): active load from argument 'x' .* is 4 bytes behind the tensor"),
        ({"bound": 4}, "active load .* 16 bytes behind"),
        ({"clamp": False}, "masked-out load .* 16 bytes behind"),
        ({"shift": -2}, "active load .* 8 bytes before"),
        ({"shift": -2, "clamp": False}, "active load .* 8 bytes before"),
        ({"stride": 2}, "active load .* between the tensor's elements"),
    ],
)
def test_a_wrong_load_is_caught(wrong, words):
    with checked_addresses(), pytest.raises(AddressError, match=words):
        copied(**wrong)


@pytest.mark.parametrize(("offset", "words"), [(12, "4 bytes behind"), (-1, "4 bytes before"), (2**40, "bytes behind")])
def test_a_wrong_store_is_caught_before_it_happens(offset, words):
    memory = torch.zeros(64)
    with checked_addresses(), pytest.raises(AddressError, match=f"active store from argument 'y' .* {words}"):
        store_at[(1,)](memory[16 : 16 + SIZE], offset)
    assert not memory.any()


def test_a_neighbour_does_not_hide_an_overrun():
    memory = torch.zeros(64)
    with checked_addresses(), pytest.raises(AddressError, match=r"argument 'tensors\[0\]'.* 4 bytes behind"):
        copy_pair[(1,)]((memory[:32], memory[32:]), 32)


def test_descriptors_may_step_outside_their_shape():
    x, y = torch.arange(64.0)[:SIZE], torch.zeros(BLOCK)
    with checked_addresses() as launched:
        copy_described[(1,)](TensorDescriptor.from_tensor(x, [BLOCK]), y, -4, BLOCK)
        assert torch.equal(y, torch.cat([torch.zeros(4), x]))
        copy_through_a_descriptor[(1,)](x, y, SIZE, BLOCK)
        assert torch.equal(y, torch.cat([x, torch.zeros(4)]))
    assert len(launched) == 2


def test_a_descriptor_larger_than_its_tensor_is_caught():
    x = torch.arange(64.0)[:SIZE]
    described = TensorDescriptor(x, [SIZE + 1], [1], [BLOCK])
    with checked_addresses(), pytest.raises(AddressError, match=r"active load from argument 'x' .* 4 bytes behind"):
        copy_described[(1,)](described, torch.zeros(BLOCK), 0, BLOCK)
    with checked_addresses(), pytest.raises(AddressError, match=r"active load from argument 'x' .* 4 bytes behind"):
        copy_through_a_descriptor[(1,)](x, torch.zeros(BLOCK), SIZE + 1, BLOCK)


def test_atomics_are_refused():
    with checked_addresses(), pytest.raises(AddressError, match="atomic"):
        add_atomically[(1,)](torch.zeros(1))


def surrounded(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with foreign memory before, behind and between them: every wrong coordinate leads there."""
    large = tensor.new_zeros([*(size + 2 for size in tensor.shape[:-1]), 2 * tensor.shape[-1] + 2])
    return large[(*(slice(1, -1),) * (tensor.dim() - 1), slice(1, -1, 2))].copy_(tensor)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "surrounded": surrounded,
    "surrounded channels_last": lambda x: surrounded(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "one image expanded": lambda x: x[:1].expand_as(x),
}
layouts = st.sampled_from(list(LAYOUTS))
pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731


def image_size(draw: Callable[..., Any], kernel, padding, dilation) -> list[int]:
    smallest = (max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True))
    return [size + draw(st.integers(0, 7)) for size in smallest]


def filtered(draw: Callable[..., Any], shape: tuple[int, ...], weight_shape: tuple[int, ...], dtype: torch.dtype):
    """Image, weight and bias, some of which need gradients."""
    x, w = (LAYOUTS[draw(layouts)](torch.randn(size, dtype=dtype)) for size in (shape, weight_shape))
    needs_x, needs_w = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    b = torch.randn(weight_shape[0], dtype=dtype).requires_grad_(draw(st.booleans()))
    return x.requires_grad_(needs_x), w.requires_grad_(needs_w), draw(st.sampled_from([b, None]))


@st.composite
def convolutions(draw, groups, channels, filters):
    """The arguments of any convolution with one of these numbers of groups, and of channels and filters in each."""
    groups, channels, filters = (draw(st.sampled_from(numbers)) for numbers in (groups, channels, filters))
    kernel, stride, padding, dilation = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(0, 3)), draw(pairs(1, 3))
    assume((kernel, stride, padding) != ((1, 1), (1, 1), (0, 0)))  # torch's, as a matrix product
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    shape = (draw(st.integers(1, 3)), groups * channels, *image_size(draw, kernel, padding, dilation))
    tensors = filtered(draw, shape, (groups * filters, channels, *kernel), dtype)
    return *tensors, stride, padding, dilation, groups


@st.composite
def dense_convolutions(draw):
    """The arguments of a convolution that tensor descriptors can serve, in whole and in overhanging rectangles."""
    groups, channels, filters = draw(st.sampled_from([(1, 16, 8), (1, 24, 24), (2, 32, 32)]))
    kernel, padding = draw(st.sampled_from([((3, 3), (1, 1)), ((3, 1), (1, 0)), ((1, 3), (0, 1)), ((2, 1), (0, 0))]))
    maps = draw(st.sampled_from([(8, 8), (7, 8), (8, 15), (15, 4)]))  # in rectangles of 64 pixels and little more
    size = [n + k - 1 - 2 * p for n, k, p in zip(maps, kernel, padding, strict=True)]
    shape = (draw(st.integers(1, 2)), groups * channels, *size)
    tensors = filtered(draw, shape, (groups * filters, channels, *kernel), torch.float16)
    return *tensors, 1, padding, 1, groups


@st.composite
def poolings(draw):
    """The arguments of any max-pooling."""
    kernel, stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(1, 2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 8])), *image_size(draw, kernel, padding, dilation))
    values = draw(st.sampled_from([torch.randn(shape), torch.full(shape, float("-inf")), torch.full(shape, torch.nan)]))
    x = LAYOUTS[draw(layouts)](values.to(draw(st.sampled_from([torch.float32, torch.float16]))))
    ceil_mode, return_indices = draw(st.booleans()), draw(st.booleans())
    return x.requires_grad_(), kernel, stride, padding, dilation, ceil_mode, return_indices


COUNTS = (1, 2, 3, 8, 20, 40)  # the large ones take several blocks
ANY = convolutions(groups=(1, 1, 2, 3), channels=COUNTS, filters=COUNTS)
DEPTHWISES = convolutions(groups=(2, 8, 20), channels=(1,), filters=(1, 2))


def wanting_gradients(arguments: tuple[Any, ...]) -> list[Any]:
    return [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]


def block_arguments(seed: int) -> list[Any]:
    block = random_block(seed)
    return wanting_gradients((*block.tensors, *block.options))


BLOCKS = st.integers(0, 2**20).map(block_arguments)
CALLS = {  # a function of lightconv.functional, its arguments, and the architecture whose loaders serve them
    "any conv2d": ("conv2d", ANY, "sm_80"),
    "depthwise conv2d": ("conv2d", DEPTHWISES, "sm_80"),
    "dense conv2d": ("conv2d", dense_convolutions(), "sm_90"),
    "any max_pool2d": ("max_pool2d", poolings(), "sm_80"),
    "any conv_block": ("conv_block", BLOCKS, "sm_80"),
    "described conv_block": ("conv_block", BLOCKS, "sm_90"),
}


def run(name: str, *arguments: Any, layout: str = "surrounded", architecture: str = "sm_80") -> None:
    """Call a function of lightconv.functional and its gradients with every address checked."""
    interpreted = mock.patch.object(launch, "INTERPRETED_AS", architecture)
    with interpreted, lc.use_backend("triton"), checked_addresses() as launched:
        outputs = getattr(lc.functional, name)(*arguments)
        forward = len(launched)
        assert forward > 0, "no kernel served the call"
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        torch.autograd.grad(output, leaves(arguments), LAYOUTS[layout](torch.randn_like(output)))
        assert len(launched) > forward, "no kernel served the gradients"


@pytest.mark.parametrize(("name", "arguments", "architecture"), CALLS.values(), ids=CALLS)
@given(data=st.data())
# not shrunk: the error says what is wrong, and a smaller example would take minutes to find
@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
def test_no_operator_leaves_its_tensors(name, arguments, architecture, data):
    torch.manual_seed(0)
    run(name, *data.draw(arguments), layout=data.draw(layouts), architecture=architecture)


def test_dense_convolutions_are_loaded_through_descriptors():
    x, w = (torch.randn(s, dtype=torch.float16, requires_grad=True) for s in [(1, 32, 8, 8), (32, 32, 3, 3)])
    real = interpreter_builder.create_descriptor_load
    with mock.patch.object(interpreter_builder, "create_descriptor_load", side_effect=real) as load:
        run("conv2d", x, w, None, 1, 1, architecture="sm_90")
    assert load.called


def pool(x_shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> None:
    run("max_pool2d", surrounded(torch.randn(x_shape)).requires_grad_(), kernel, stride, padding)


def convolve(x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int, padding: int, groups: int = 1) -> None:
    x, w, b = surrounded(torch.randn(x_shape)), surrounded(torch.randn(w_shape)), torch.randn(w_shape[0])
    run("conv2d", *(t.requires_grad_() for t in (x, w, b)), stride, padding, 1, groups)


# windows that meet the padding on every side, of images with pixels where one more window would start
POOL = partial(pool, (2, 3, 5, 7), kernel=4, stride=2, padding=2)
# no window takes the last row and column
POOL_SIDE_BY_SIDE = partial(pool, (2, 3, 3, 7), kernel=2, stride=2, padding=0)
POOL_TO_FEW = partial(pool, (1, 1, 4, 6), kernel=2, stride=2, padding=0)
FEW_CHANNELS = partial(convolve, (2, 3, 5, 7), (3, 3, 4, 4), stride=2, padding=2)
MANY_CHANNELS = partial(convolve, (2, 17, 5, 7), (3, 17, 4, 4), stride=2, padding=2)
DEPTHWISE = partial(convolve, (2, 3, 5, 7), (3, 1, 4, 4), stride=2, padding=2, groups=3)
SPLIT = partial(convolve, (2, 1, 8, 8), (2, 1, 2, 2), stride=1, padding=0)  # the sum of the weight's gradient


class Mutation(NamedTuple):
    """A mistake put into each place of a kernel module where its source reads so, and a call that must show it."""

    module: str
    source: str
    broken: str
    call: Callable[[], None]


MUTATIONS = [
    Mutation("max_pooling", "(h < input_shape[1])", "(h <= input_shape[1])", POOL),
    Mutation("max_pooling", "(w < input_shape[2])", "(w <= input_shape[2])", POOL),
    Mutation("max_pooling", "(h >= 0)", "(h >= -1)", POOL),
    Mutation("max_pooling", "(w >= 0)", "(w >= -1)", POOL),
    Mutation("max_pooling", "tl.where(row_in, h, 0)", "h", POOL),
    Mutation("max_pooling", "tl.where(inside, w, 0)", "w", POOL),
    Mutation("max_pooling", "element < elements", "element <= elements", POOL),
    Mutation("max_pooling", "tl.where(element_in, element, tl.arange(0, BLOCK) % RUN)", "element", POOL),
    Mutation("max_pooling", "numel() % 16 == 0", "numel() > 0", POOL_TO_FEW),
    Mutation("implicit_gemm", "h_in = row_in & (h >= 0)", "h_in = row_in", MANY_CHANNELS),
    Mutation("implicit_gemm", "& (h < input_size[0])\n", "\n", MANY_CHANNELS),
    Mutation("implicit_gemm", "inside = h_in & (w >= 0)", "inside = h_in", MANY_CHANNELS),
    Mutation("implicit_gemm", "tl.where(inside, h, 0), tl.where(inside, w, 0)", "h, w", FEW_CHANNELS),
    Mutation("implicit_gemm", "(h >= 0) & (h < input_size[0]) & (w", "(h < input_size[0]) & (w", FEW_CHANNELS),
    Mutation("implicit_gemm", "tl.where(h_in, h, 0)", "h", MANY_CHANNELS),
    Mutation("implicit_gemm", "w = tl.where(inside, w, 0)\n", "w = w\n", MANY_CHANNELS),
    Mutation("jit_helpers", "tl.where(inside, pixel, 0)", "pixel", FEW_CHANNELS),
    Mutation("jit_helpers", "tl.where(inside, column, 0)", "column", FEW_CHANNELS),
    Mutation("jit_helpers", "column < size", "column <= size", FEW_CHANNELS),
    Mutation("weight_gradient", "(h < input_size[0])", "(h <= input_size[0])", FEW_CHANNELS),
    Mutation("weight_gradient", "(w < input_size[1])", "(w <= input_size[1])", FEW_CHANNELS),
    Mutation("weight_gradient", "tl.where(h_in, h, 0)", "h", FEW_CHANNELS),
    Mutation("weight_gradient", "tl.where(input_in, w, 0)", "w", FEW_CHANNELS),
    Mutation("weight_gradient", "tl.where(i_in, i, 0)", "i", FEW_CHANNELS),
    Mutation("weight_gradient", "tl.where(pixel_in, j, 0)", "j", SPLIT),
    Mutation("depthwise", "(h < height)", "(h <= height)", DEPTHWISE),
    Mutation("depthwise", "(w < width)", "(w <= width)", DEPTHWISE),
    Mutation("depthwise", "tl.where(row_in, h, 0)", "h", DEPTHWISE),
    Mutation("depthwise", "tl.where(tap_in, w, 0)", "w", DEPTHWISE),
    Mutation("depthwise", "(i < out_height)", "(i <= out_height)", DEPTHWISE),
    Mutation("depthwise", "tl.where(row_in, i, 0)", "i", DEPTHWISE),
    Mutation("depthwise", "tl.where(tap_in, j, 0)", "j", DEPTHWISE),
    Mutation("depthwise", "tl.where(inside, h, 0)", "h", DEPTHWISE),
    Mutation("depthwise", "c % channels", "c", DEPTHWISE),
    Mutation("ordered_sum", "tl.where(inside, element, 0)", "element", SPLIT),
    Mutation("ordered_sum", "tl.where(is_weight, element, 0)", "element", SPLIT),
    Mutation("ordered_sum", "tl.where(is_bias, element - weights, 0)", "element - weights", SPLIT),
    Mutation("max_pooling", "window < windows", "window <= windows", POOL),
    Mutation("max_pooling", "tl.where(mask, window, 0)", "window", POOL),
    Mutation("max_pooling", "(i < output_shape[1])", "(i <= output_shape[1])", POOL_SIDE_BY_SIDE),
    Mutation("max_pooling", "(j < output_shape[2])", "(j <= output_shape[2])", POOL_SIDE_BY_SIDE),
    Mutation("max_pooling", "tl.where(covered, i, 0)", "i", POOL_SIDE_BY_SIDE),
    Mutation("max_pooling", "tl.where(covered, j, 0)", "j", POOL_SIDE_BY_SIDE),
]


@pytest.mark.parametrize("call", list(dict.fromkeys(mutation.call for mutation in MUTATIONS)))
def test_the_calls_that_show_mistakes_are_right_as_the_kernels_stand(call):
    torch.manual_seed(0)
    call()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.module}: {m.source} -> {m.broken}")
def test_every_mistake_in_a_kernel_is_caught(mutation, tmp_path, monkeypatch):
    torch.manual_seed(0)
    original = importlib.import_module(f"lightconv.kernels.{mutation.module}")
    for mutant in mutants(original, mutation.source, mutation.broken, tmp_path):
        with monkeypatch.context() as patch:
            put_in_place(mutant, original, patch)
            with pytest.raises(AddressError):
                mutation.call()
