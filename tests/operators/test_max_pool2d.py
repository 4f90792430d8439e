from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from helpers.support import (
    assert_same,
    assert_same_gradients,
    call_and_record_saved,
    call_both,
    error_of,
    fill_with_integers,
    opinfo,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, func

import lightconv as lc
from lightconv.kernels.window import Window
from lightconv.operators import max_pool2d as operator
from lightconv.operators import window_argmax

CHUNKS = 6
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_pytorchs_samples(device, chunk):
    samples = list(opinfo("max_pool2d").sample_inputs(device, torch.float32, requires_grad=True))
    assert len(samples) == 1440
    assert sum(sample.kwargs["return_indices"] for sample in samples) == 720  # the other half keeps window argmaxes
    for sample in samples[chunk::CHUNKS]:
        # PyTorch's values, and small integers with many ties
        for x in (sample.input, fill_with_integers(sample.input)):
            ours, torchs = call_both("max_pool2d", x, *sample.args, **sample.kwargs)
            assert_same(ours, torchs, exactly=True)
        assert_same_gradients(ours, torchs, [x], exactly=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, dtype):
    for sample in list(opinfo("max_pool2d").sample_inputs(device, dtype, requires_grad=True))[::16]:
        ours, torchs = call_both("max_pool2d", sample.input, *sample.args, **sample.kwargs)
        assert_same(ours, torchs, exactly=True)
        assert_same_gradients(ours, torchs, [sample.input], exactly=True)


def test_pytorchs_error_inputs(device, kernels):
    errors = list(opinfo("max_pool2d").error_inputs(device))
    assert len(errors) == 7
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            lc.functional.max_pool2d(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 0},
        {"kernel_size": (1, 2, 3)},
        {"kernel_size": 9},
        {"stride": 0},
        {"padding": 2},
        {"padding": -1},
        {"dilation": 0},
        {"input": torch.zeros(6)},
        {"input": torch.zeros(2, 3, 0, 6)},
    ],
    ids=lambda a: "-".join(f"{k}={v if not isinstance(v, torch.Tensor) else tuple(v.shape)}" for k, v in a.items()),
)
def test_bad_arguments(arguments, kernels):
    call = {"input": torch.zeros(2, 3, 6, 6), "kernel_size": 2} | arguments
    expected = error_of(F.max_pool2d, **call)
    assert expected is not None
    assert error_of(lc.functional.max_pool2d, **call) == expected


class Pooling(NamedTuple):
    """Arguments of lightconv.functional.max_pool2d."""

    input: Tensor
    kernel_size: tuple[int, int]
    stride: tuple[int, int] | None
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool
    return_indices: bool


@st.composite
def poolings(draw):
    """Draw a max-pooling over few distinct values, also NaN and infinities."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    kernel = (number(1, 4), number(1, 4))
    padding = tuple(number(0, k // 2) for k in kernel)
    dilation = (number(1, 2), number(1, 2))
    image = [max(1, d * (k - 1) + 1 - 2 * p) + number(0, 7) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    torch.manual_seed(number(0, 2**31))
    values = torch.tensor(draw(st.sampled_from([[-1.0, 0.0, 1.0], [-0.0, 0.0], [-INF, -1.0], [NAN, 0.0, INF, -INF]])))
    x = values[torch.randint(len(values), (number(1, 3), number(1, 3), *image))]
    x = x.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    stride = draw(st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    return Pooling(x.requires_grad_(), kernel, stride, padding, dilation, draw(st.booleans()), draw(st.booleans()))


@given(poolings())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_random_geometry(pooling):
    ours, torchs = call_both("max_pool2d", *pooling)
    assert_same(ours, torchs, exactly=True)
    ours_values, torchs_values = (out[0] if pooling.return_indices else out for out in (ours, torchs))
    number = ~torchs_values.isnan()
    assert torch.equal(torch.signbit(ours_values)[number], torch.signbit(torchs_values)[number])
    if every_window_has_a_pixel(pooling):
        assert_same_gradients(ours, torchs, [pooling.input], exactly=True)


def every_window_has_a_pixel(pooling):
    """Return False if a dilated window steps over a small image: torch's backward then writes outside of its tensor."""
    single = pooling._replace(input=torch.zeros(1, 1, *pooling.input.shape[2:]), return_indices=False)
    values = F.max_pool2d(*single)
    return bool(values.isfinite().all())


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_window_without_a_pixel_has_no_gradient(dtype, return_indices):
    options = [(2, 2), (1, 1), (1, 1), (3, 3), False]
    x = torch.randn(1, 2, 2, 2, dtype=dtype, requires_grad=True)
    values, argmax = torch.ops.lightconv.max_pool2d(x, *options, return_indices)
    expected, indices = F.max_pool2d(x.detach(), *options, return_indices=True)
    assert torch.equal(values, expected)
    assert not values.isfinite().any()
    if return_indices:
        assert torch.equal(argmax, indices)
    cotangent = torch.ones_like(values, requires_grad=True)
    (grad,) = torch.autograd.grad(values, x, cotangent, create_graph=True)
    (grad_of_grad,) = torch.autograd.grad(grad.sum(), cotangent)
    assert not grad.any()
    assert not grad_of_grad.any()


@pytest.mark.parametrize(
    ("pixels", "value", "index"),
    [
        ([1, 1, 1, 1], 1, 0),
        ([-0.0, 0.0, 0.0, -0.0], 0, 0),
        ([1, NAN, 2, 3], NAN, 1),
        ([NAN, 5, NAN, INF], NAN, 2),
        ([-INF, -INF, -INF, -INF], -INF, 0),
    ],
)
def test_ties_nan_and_minus_infinity(device, kernels, pixels, value, index):
    x = torch.tensor(pixels, dtype=torch.float32, device=device).view(1, 1, 2, 2)
    values, indices = lc.functional.max_pool2d(x, 2, return_indices=True)
    torch.testing.assert_close(values.item(), float(value), equal_nan=True)
    assert indices.item() == index
    # in a window as large as the image, the window argmax equals the plane index
    _, argmax = torch.ops.lightconv.max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False, False)
    assert argmax.dtype is torch.uint8
    assert argmax.item() == index


@pytest.mark.parametrize("return_indices", [False, True])
def test_plane_beyond_32_bits(return_indices):
    side = 50_000  # one element of memory, expanded
    x = torch.zeros(1).expand(1, 1, side, side)
    options = [(1, 1), (side - 1, side - 1), (0, 0), (1, 1), False]
    values, argmax = torch.ops.lightconv.max_pool2d(x, *options, return_indices)
    assert torch.equal(values, torch.zeros(1, 1, 2, 2))
    corners = [0, side - 1, (side - 1) * side, side * side - 1]
    assert argmax.flatten().tolist() == (corners if return_indices else [0, 0, 0, 0])


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_64_bit_addresses(device, monkeypatch, channels_last, return_indices):
    monkeypatch.setattr(operator.max_pooling, "index_type", lambda *tensors: tl.int64)
    x = torch.randint(-3, 4, (2, 16, 7, 6), device=device).float()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    ours, torchs = call_both("max_pool2d", x.requires_grad_(), 3, 2, 1, 1, True, return_indices)
    assert_same(ours, torchs, exactly=True)
    assert_same_gradients(ours, torchs, [x], exactly=True)


@pytest.mark.parametrize(
    ("kernel_size", "return_indices", "bytes_per_window"),
    [((15, 17), False, 1), ((16, 16), False, 8), ((2, 2), True, 8)],
    ids=str,
)
def test_bytes_saved_per_window(device, kernels, kernel_size, return_indices, bytes_per_window):
    # rising values: the last position wins
    x = torch.arange(17.0 * 17, device=device).view(1, 1, 17, 17).requires_grad_()
    ours, saved = call_and_record_saved(lambda: lc.functional.max_pool2d(x, kernel_size, return_indices=return_indices))
    values = ours[0] if return_indices else ours
    assert sum(tensor.nbytes for tensor in saved) == values.numel() * bytes_per_window
    assert_same_gradients(values, F.max_pool2d(x, kernel_size), [x], exactly=True)


def test_symbolic_trace():
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(lc.nn.MaxPool2d(2), lc.nn.ConvBlock(1, 2, 3, pool=2)))
    x = torch.randn(1, 1, 12, 12)
    assert traced(x).shape == (1, 2, 2, 2)


@pytest.mark.parametrize("change", [{"ceil_mode": None}, {"ceil_mode": 1}, {"kernel_size": True}, {"input": None}])
def test_unusual_arguments(kernels, change):
    call = {"input": torch.zeros(1, 1, 4, 4), "kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1} | change
    call.setdefault("ceil_mode", False)
    assert error_of(lc.functional.max_pool2d, *call.values()) == error_of(F.max_pool2d, *call.values())


def test_empty_batch(kernels):
    ours, torchs = call_both("max_pool2d", torch.randn(0, 3, 6, 6), 2)
    assert_same(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_dtypes_go_to_torch(kernels, dtype):
    x = torch.arange(32).view(1, 2, 4, 4).to(dtype)
    assert "no kernel" in operator.operator_unsupported_reason(x, (2, 2), Window((2, 2), (0, 0), (1, 1)), False)
    assert_same(lc.functional.max_pool2d(x, 2), F.max_pool2d(x, 2))


def test_indices_changed_before_backward(kernels):
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    values, indices = lc.functional.max_pool2d(x, 2, return_indices=True)
    indices.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


def test_autocast_keeps_the_dtype(device, kernels):
    x = torch.randn(1, 1, 4, 4, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert lc.functional.max_pool2d(x, 2).dtype is F.max_pool2d(x, 2).dtype


@pytest.mark.parametrize(("channels_last", "return_indices"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, channels_last, return_indices):
    x = torch.randn(2, 3, 7, 6, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    options = [(3, 2), (2, 1), (1, 1), (1, 2), True]
    torch.library.opcheck(torch.ops.lightconv.max_pool2d.default, (x.requires_grad_(), *options, return_indices))
    values, argmax = torch.ops.lightconv.max_pool2d(x.detach(), *options, return_indices)
    torch.library.opcheck(
        torch.ops.lightconv.max_pool2d_backward.default,
        (torch.randn_like(values).requires_grad_(), argmax, list(x.shape), *options, channels_last),
    )


def test_kernel_and_reference_have_the_same_window_argmax():
    options = [(3, 2), (2, 1), (1, 1), (2, 1), True]
    x = torch.randint(-3, 4, (2, 3, 9, 8)).float()
    values, argmax = torch.ops.lightconv.max_pool2d(x, *options, False)
    reference_values, reference_argmax = torch.ops.lightconv.max_pool2d(x.double(), *options, False)
    assert torch.equal(values.double(), reference_values)
    assert torch.equal(argmax, reference_argmax)


@pytest.mark.parametrize("return_indices", [False, True])
def test_second_derivatives(return_indices):
    x = torch.randperm(80).view(2, 2, 5, 4).double().requires_grad_()
    options = [(3, 2), (2, 1), (1, 0), (1, 2), True]
    call = lambda x: torch.ops.lightconv.max_pool2d(x, *options, return_indices)[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(lambda x: call(x) ** 2, x)


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("name", ["triton", "auto"])
def test_torch_compile(name, return_indices):
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    call = lambda x: lc.functional.max_pool2d(x, 2, return_indices=return_indices)  # noqa: E731
    with lc.use_backend(name):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x), call(x))
        assert_same_gradients(compiled(x), call(x), [x])


def test_vmap_keeps_channels_last(kernels):
    x = torch.randn(2, 3, 6, 6, 4).permute(0, 1, 4, 2, 3)
    pooled = func.vmap(lambda x: torch.ops.lightconv.max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False, False)[0])(x)
    assert_same(pooled[0], F.max_pool2d(x[0], 2))


@pytest.mark.parametrize("kernel_size", [(1, 1), (2, 3)])
def test_argmax_beyond_the_window(device, kernels, kernel_size):
    torch.manual_seed(0)
    grad = torch.randn(2, 3, 4, 5, device=device)
    argmax = torch.randint(0, 6, (2, 3, 4, 5), device=device).byte()
    argmax[..., ::2] = 255
    size = [4 * kernel_size[0] + kernel_size[0] - 1, 5 * kernel_size[1]]  # the last rows are left over
    options = (kernel_size, kernel_size, (0, 0), (1, 1), False)
    maps = torch.ops.lightconv.max_pool2d_backward(grad, argmax, (2, 3, *size), *options, False)
    assert torch.equal(maps, window_argmax.unpool(grad, argmax, kernel_size, size))
