from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers.support import (
    assert_same,
    assert_same_gradients,
    call_and_record_saved,
    call_both,
    error_of,
    fill_with_integers,
    in_layout,
    leaves,
    opinfo,
    record_calls,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lightconv as lc
from lightconv.kernels.window import Window
from lightconv.operators import conv2d as operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def samples(device: str, dtype: torch.dtype = torch.float32):
    return list(opinfo("conv2d").sample_inputs(device, dtype, requires_grad=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorchs_samples(device, dtype):
    for sample in samples(device, dtype):
        ours, torchs = call_both("conv2d", sample.input, *sample.args, **sample.kwargs)
        assert_same(ours, torchs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_small_integers(device, dtype):
    for sample in samples(device, dtype):
        args = [fill_with_integers(a) for a in (sample.input, *sample.args)]
        kwargs = {k: fill_with_integers(v) for k, v in sample.kwargs.items()}
        ours, torchs = call_both("conv2d", *args, **kwargs)
        assert_same(ours, torchs, exactly=True)
        assert_same_gradients(ours, torchs, leaves([*args, *kwargs.values()]), exactly=True)


def test_pytorchs_error_inputs(device, kernels):
    errors = list(opinfo("conv2d").error_inputs(device))
    assert len(errors) == 10
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            lc.functional.conv2d(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 0},
        {"stride": (1, 2, 3)},
        {"stride": 1.5},
        {"padding": -1},
        {"padding": "full"},
        {"padding": "same", "stride": 2},
        {"dilation": 0},
        {"groups": 0},
        {"groups": 2},
        {"groups": -1},
        {"bias": torch.zeros(3)},
        {"bias": torch.zeros(4, 1)},
        {"weight": torch.zeros(0, 3, 2, 2)},
        {"weight": torch.zeros(4, 3, 9, 9)},
        {"weight": torch.zeros(4, 3, 3)},
        {"weight": torch.zeros(4, 3, 2, 2, dtype=torch.float64)},
        {"weight": torch.zeros(4, 3, 2, 2, dtype=torch.int64)},
        {"input": torch.zeros(6, 6)},
        {"input": torch.zeros(2, 4, 6, 6)},
    ],
    ids=lambda a: "-".join(f"{k}={v if not isinstance(v, torch.Tensor) else tuple(v.shape)}" for k, v in a.items()),
)
def test_bad_arguments(arguments, kernels):
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    call = {"input": torch.zeros(2, 3, 6, 6), "weight": torch.zeros(4, 3, 2, 2)} | defaults | arguments
    expected = error_of(F.conv2d, *call.values())
    assert expected is not None
    assert error_of(lc.functional.conv2d, *call.values()) == expected


class Convolution(NamedTuple):
    """Arguments of lightconv.functional.conv2d, and of the operator."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def detached(self) -> "Convolution":
        """Return the same call with leaf tensors that need a gradient."""
        input, weight, bias = (
            None if tensor is None else tensor.detach().requires_grad_()
            for tensor in (self.input, self.weight, self.bias)
        )
        return self._replace(input=input, weight=weight, bias=bias)


@st.composite
def convolutions(draw):
    """Draw a convolution of small integers: geometry, dtype and memory formats."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    groups = number(1, 3)
    channels, filters = number(1, 4), number(1, 4)
    kernel = (number(1, 4), number(1, 4))
    dilation = (number(1, 3), number(1, 3))
    padding = (number(0, 3), number(0, 3))
    image = [max(1, d * (k - 1) + 1 - 2 * p) + number(0, 8) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    dtype = draw(st.sampled_from(DTYPES))
    layouts = st.sampled_from(["contiguous", "channels_last", "sliced", "expanded"])
    torch.manual_seed(number(0, 2**31))
    x = in_layout(torch.randint(-3, 4, (number(1, 3), groups * channels, *image)).to(dtype), draw(layouts))
    w = in_layout(torch.randint(-3, 4, (groups * filters, channels, *kernel)).to(dtype), draw(layouts))
    b = in_layout(torch.randint(-3, 4, (1, 1, 1, groups * filters)).to(dtype), draw(layouts)).flatten()
    b = draw(st.sampled_from([None, b, b[:1].expand_as(b)]))
    return Convolution(x, w, b, (number(1, 3), number(1, 3)), padding, dilation, groups)


@given(convolutions())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_exact_on_random_geometry(convolution):
    call = convolution.detached()
    ours, torchs = call_both("conv2d", *call)
    assert_same(ours, torchs, exactly=True)
    assert_same_gradients(ours, torchs, leaves(call), exactly=True)


@pytest.mark.parametrize("padding", [0, "same"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_against_float64(device, kernels, padding, channels_last):
    torch.manual_seed(0)
    exact = [torch.randn(s, dtype=torch.float64, device=device) for s in [(4, 6, 11, 9), (8, 3, 4, 3), (8,)]]
    cotangent = None
    gradients = {}
    for dtype in (torch.float64, torch.float32):
        tensors = [t.to(dtype).requires_grad_() for t in exact]
        if channels_last:
            tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        output = lc.functional.conv2d(*tensors, padding=padding, dilation=2, groups=2)
        cotangent = torch.randn_like(output) if cotangent is None else cotangent
        gradients[dtype] = torch.autograd.grad(output, tensors, cotangent.to(dtype))
    for single, double in zip(gradients[torch.float32], gradients[torch.float64], strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_needed_gradients_are_computed(device, kernels, needed, monkeypatch):
    input_gradients = record_calls(monkeypatch, operator.implicit_gemm, "input_gradient")
    weight_gradients = record_calls(monkeypatch, operator.weight_gradient, "weight_gradient")
    tensors = [torch.randn(s, device=device) for s in [(2, 3, 6, 6), (4, 3, 3, 3), (4,)]]
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    lc.functional.conv2d(*tensors).sum().backward()
    assert [t.grad is not None for t in tensors] == list(needed)
    assert (len(input_gradients), len(weight_gradients)) == (needed[0], needed[1])


def test_frozen_filters_save_no_images(kernels):
    x, w = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    _, saved = call_and_record_saved(lambda: lc.functional.conv2d(x, w))
    assert [tensor.shape for tensor in saved] == [w.shape]


def test_nan_and_infinity(device, kernels):
    x = torch.ones(1, 1, 5, 5, device=device)
    x[0, 0, 1, 1], x[0, 0, 3, 3] = float("nan"), float("inf")
    w = torch.ones(1, 1, 2, 2, device=device)
    assert_same(lc.functional.conv2d(x, w), F.conv2d(x, w))


def test_empty_batch(kernels):
    x, w = torch.randn(0, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    ours, torchs = call_both("conv2d", x, w)
    assert_same(ours, torchs)
    assert_same_gradients(ours, torchs, [x, w])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_dtypes_go_to_torch(kernels, dtype):
    x, w = torch.randn(1, 2, 5, 5, dtype=dtype), torch.randn(3, 2, 3, 3, dtype=dtype)
    assert "no kernel" in operator.operator_unsupported_reason(x, w, None, Window((1, 1), (0, 0), (1, 1)), 1)
    assert_same(lc.functional.conv2d(x, w), F.conv2d(x, w))


def operator_calls() -> list[Convolution]:
    x, w, b = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 2), torch.randn(6)
    call = Convolution(x, w, b, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    return [
        call,
        call._replace(input=x.contiguous(memory_format=torch.channels_last), bias=None),
        call._replace(input=x.double(), weight=w.double(), bias=b.double()),
        call._replace(input=x[:0]),
    ]


@pytest.mark.parametrize("call", operator_calls())
def test_opcheck(call):
    call = call.detached()
    torch.library.opcheck(torch.ops.lightconv.conv2d.default, tuple(call))
    window = (call.stride, call.padding, call.dilation, call.groups)
    output = torch.ops.lightconv.conv2d(*call).detach()
    channels_last = output.stride(1) == 1
    options = (*window, (1, 1), channels_last)
    torch.library.opcheck(
        torch.ops.lightconv.conv2d_input_gradient.default,
        (output.requires_grad_(), None, call.weight, list(call.input.shape), *options),
    )
    for bias in (True, False):
        torch.library.opcheck(
            torch.ops.lightconv.conv2d_weight_gradient.default,
            (output, None, call.input, list(call.weight.shape), *options, bias),
        )


def test_second_derivatives():
    shapes = [(2, 2, 5, 4), (4, 1, 3, 2), (4,)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    call = lambda x, w, b: torch.ops.lightconv.conv2d(x, w, b, (2, 1), (1, 1), (1, 2), 2)  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_second_derivatives_by_the_kernels(device, kernels):
    torch.manual_seed(0)
    tensors = [torch.randint(-2, 3, s, device=device).float() for s in [(2, 2, 5, 4), (4, 1, 3, 2), (4,)]]
    results = []
    for name in ("triton", "reference"):
        inputs = [t.clone().requires_grad_() for t in tensors]
        with lc.use_backend(name):
            output = lc.functional.conv2d(*inputs, stride=(2, 1), padding=1, groups=2)
            first = torch.autograd.grad((output**2).sum(), inputs, create_graph=True)
            results.append(torch.autograd.grad(sum((g**2).sum() for g in first), inputs))
    assert_same(tuple(results[0]), tuple(results[1]), exactly=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(device, kernels, dtype):
    x, w, b = (torch.randn(s, device=device) for s in [(2, 3, 6, 6), (4, 3, 3, 3), (4,)])
    with torch.autocast(device, dtype):
        assert lc.functional.conv2d(x, w, b).dtype is dtype
        assert lc.functional.conv2d(x.double(), w.double()).dtype is torch.float64
        assert_same(lc.functional.conv2d(x, w, b), F.conv2d(x, w, b))


def test_autocast_of_two_layers(kernels, monkeypatch):
    launched = record_calls(monkeypatch, operator.implicit_gemm, "forward")
    x, w = torch.randn(1, 3, 6, 6), torch.randn(3, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        lc.functional.conv2d(lc.functional.conv2d(x, w), w)
    assert [images.dtype for _, images, *_ in launched] == [torch.bfloat16] * 2


def test_autocast_gradients_are_float32(kernels):
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        lc.functional.conv2d(torch.randn(2, 3, 6, 6), weight).sum().backward()
    assert weight.grad.dtype is torch.float32


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_torch_compile(name):
    def step(x, w):
        return torch.autograd.grad(lc.functional.conv2d(x, w, padding=1).square().sum(), (x, w))

    x, w = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with lc.use_backend(name):
        compiled = torch.compile(
            lambda x, w: lc.functional.conv2d(x, w, padding=1), fullgraph=True, backend="aot_eager"
        )
        assert_same(compiled(x, w), lc.functional.conv2d(x, w, padding=1))
        compiled(x, w).square().sum().backward()
        torch.testing.assert_close((x.grad, w.grad), step(x, w))


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_torch_export(name):
    x, model = torch.randn(2, 3, 6, 6), lc.nn.Conv2d(3, 4, 3).eval()
    with lc.use_backend(name):
        program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), F.conv2d(x, model.weight, model.bias))
    targets = {str(node.target) for node in program.graph.nodes}
    assert ("lightconv.conv2d.default" in targets) == (name == "triton")


def test_reaches_beyond_32_bits(kernels):
    # two images 4 GiB apart: only the pages that are touched are ever allocated
    far = 2**31 + 8
    storage = torch.empty(far + 64, dtype=torch.float16)
    x = storage.as_strided((2, 1, 4, 4), (far, 16, 4, 1))
    x.copy_(torch.randint(-3, 4, x.shape))
    w = torch.randint(-3, 4, (2, 1, 3, 3)).half()
    assert_same(lc.functional.conv2d(x, w), F.conv2d(x.contiguous(), w), exactly=True)
    near = storage.as_strided((2, 1, 4, 4), (16, 16, 4, 1))
    assert str(operator.implicit_gemm.index_type(near)) == "int32"
    assert str(operator.implicit_gemm.index_type(x)) == "int64"


def test_forward_mode_and_torch_func(kernels):
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    for ours, torchs in (
        (lambda w: lc.functional.conv2d(x, w), lambda w: F.conv2d(x, w)),
        (lambda w: lc.functional.max_pool2d(w, 2), lambda w: F.max_pool2d(w, 2)),
    ):
        assert_same(
            torch.func.jvp(ours, (w,), (torch.ones_like(w),)), torch.func.jvp(torchs, (w,), (torch.ones_like(w),))
        )
        assert_same(torch.func.grad(lambda w: ours(w).sum())(w), torch.func.grad(lambda w: torchs(w).sum())(w))  # noqa: B023
        assert_same(torch.func.vmap(ours)(w[None]), torch.func.vmap(torchs)(w[None]))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(w, torch.ones_like(w))
        assert torch.autograd.forward_ad.unpack_dual(lc.functional.conv2d(x, dual)).tangent is not None


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_unusual_arguments(name):
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    for change in (
        {"padding": True}, {"padding": range(1, 3)}, {"padding": torch.Size([1, 1])}, {"groups": True}, {"groups": 1.0},
        {"groups": (1,)}, {"stride": [2]}, {"stride": ()}, {"input": None}, {"input": [1]}, {"weight": None},
        {"bias": [1]},
    ):  # fmt: skip
        call = {"input": x, "weight": w, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | change
        with lc.use_backend(name):
            ours = error_of(lc.functional.conv2d, *call.values())
        assert ours == error_of(F.conv2d, *call.values()), change


def test_no_kernel_uses_atomics():
    sources = Path(operator.implicit_gemm.__file__).parent.glob("*.py")
    assert not any("tl.atomic" in source.read_text() for source in sources)


def test_same_bits_twice(device, kernels):
    x, w, b = (torch.randn(s, device=device, requires_grad=True) for s in [(3, 4, 9, 9), (8, 4, 3, 3), (8,)])
    runs = [torch.autograd.grad(lc.functional.conv2d(x, w, b).square().sum(), (x, w, b)) for _ in range(2)]
    assert_same(runs[0], runs[1], exactly=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_stride_larger_than_image(device, kernels, groups):
    x = torch.randint(-3, 4, (2, 2, 3, 2), device=device).float().requires_grad_()
    w = torch.randint(-3, 4, (4, 2 // groups, 2, 1), device=device).float()
    ours, torchs = call_both("conv2d", x, w, stride=(50_000, 50_000), groups=groups)
    assert_same(ours, torchs, exactly=True)
    assert_same_gradients(ours, torchs, [x], exactly=True)
