import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from helpers.support import assert_same, assert_same_gradients, error_of, opinfo, ours_and_torchs, with_integers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import func

import lightconv as lc
from lightconv.kernels.window import Window
from lightconv.operators import max_pool2d as operator
from lightconv.operators import window_argmax

CHUNKS = 6
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_equals_torch_on_pytorchs_samples(device, chunk):
    samples = list(opinfo("max_pool2d").sample_inputs(device, torch.float32, requires_grad=True))
    assert len(samples) == 1440
    assert sum(sample.kwargs["return_indices"] for sample in samples) == 720  # positions serve the other half
    for sample in samples[chunk::CHUNKS]:
        # their values, and small integers full of ties
        for x in (sample.input, with_integers(sample.input)):
            ours, torchs = ours_and_torchs("max_pool2d", x, *sample.args, **sample.kwargs)
            assert_same(ours, torchs, exactly=True)
        assert_same_gradients(ours, torchs, [x], exactly=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equals_torch_in_half_precision(device, dtype):
    for sample in list(opinfo("max_pool2d").sample_inputs(device, dtype, requires_grad=True))[::16]:
        ours, torchs = ours_and_torchs("max_pool2d", sample.input, *sample.args, **sample.kwargs)
        assert_same(ours, torchs, exactly=True)
        assert_same_gradients(ours, torchs, [sample.input], exactly=True)


def test_refuses_what_torch_refuses_in_torchs_words(device, kernels):
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
def test_words_bad_arguments_as_torch_does(arguments, kernels):
    call = {"input": torch.zeros(2, 3, 6, 6), "kernel_size": 2} | arguments
    expected = error_of(F.max_pool2d, **call)
    assert expected is not None
    assert error_of(lc.functional.max_pool2d, **call) == expected


@st.composite
def poolings(draw):
    """A random max-pooling over few distinct values, with NaN and infinities among them."""
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
    return x, kernel, stride, padding, dilation, draw(st.booleans()), draw(st.booleans())


@given(poolings())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_equals_torch_on_random_geometry(call):
    x, *window = call
    x = x.detach().requires_grad_()
    ours, torchs = ours_and_torchs("max_pool2d", x, *window)
    assert_same(ours, torchs, exactly=True)
    ours_values, torchs_values = (out[0] if window[-1] else out for out in (ours, torchs))
    number = ~torchs_values.isnan()
    assert torch.equal(torch.signbit(ours_values)[number], torch.signbit(torchs_values)[number])
    if every_window_sees_a_pixel(x, *window):
        assert_same_gradients(ours, torchs, [x], exactly=True)


def every_window_sees_a_pixel(x, kernel, stride, padding, dilation, *_):
    """A dilated window may step over a small image: torch's backward then writes outside of its tensor."""
    where = F.max_pool2d(torch.zeros_like(x[:1, :1].float()), kernel, stride, padding, dilation, *_[:-1])
    return bool(where.isfinite().all())


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_window_that_steps_over_the_image_gets_no_gradient(dtype, return_indices):
    window = [(2, 2), (1, 1), (1, 1), (3, 3), False]
    x = torch.randn(1, 2, 2, 2, dtype=dtype, requires_grad=True)
    values, where = torch.ops.lightconv.max_pool2d(x, *window, return_indices)
    expected, indices = F.max_pool2d(x.detach(), *window, return_indices=True)
    assert torch.equal(values, expected)
    assert not values.isfinite().any()
    if return_indices:
        assert torch.equal(where, indices)
    cotangent = torch.ones_like(values, requires_grad=True)
    (grad,) = torch.autograd.grad(values, x, cotangent, create_graph=True)
    (grad_of_grad,) = torch.autograd.grad(grad.sum(), cotangent)
    assert not grad.any()
    assert not grad_of_grad.any()


@pytest.mark.parametrize(
    ("window", "value", "index"),
    [
        ([1, 1, 1, 1], 1, 0),
        ([-0.0, 0.0, 0.0, -0.0], 0, 0),
        ([1, NAN, 2, 3], NAN, 1),
        ([NAN, 5, NAN, INF], NAN, 2),
        ([-INF, -INF, -INF, -INF], -INF, 0),
    ],
)
def test_ties_nan_and_minus_infinity(device, kernels, window, value, index):
    x = torch.tensor(window, dtype=torch.float32, device=device).view(1, 1, 2, 2)
    values, indices = lc.functional.max_pool2d(x, 2, return_indices=True)
    torch.testing.assert_close(values.item(), float(value), equal_nan=True)
    assert indices.item() == index
    _, positions = torch.ops.lightconv.max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False, False)
    assert positions.dtype is torch.uint8
    assert positions.item() == index


@pytest.mark.parametrize("return_indices", [False, True])
def test_a_plane_beyond_32_bits(return_indices):
    side = 50_000  # one element of memory, expanded
    x = torch.zeros(1).expand(1, 1, side, side)
    window = [(1, 1), (side - 1, side - 1), (0, 0), (1, 1), False]
    values, where = torch.ops.lightconv.max_pool2d(x, *window, return_indices)
    assert torch.equal(values, torch.zeros(1, 1, 2, 2))
    corners = [0, side - 1, (side - 1) * side, side * side - 1]
    assert where.flatten().tolist() == (corners if return_indices else [0, 0, 0, 0])


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_64_bit_addresses_lead_to_the_same_elements(device, monkeypatch, channels_last, return_indices):
    monkeypatch.setattr(operator.max_pooling, "index_type", lambda *tensors: tl.int64)
    x = torch.randint(-3, 4, (2, 16, 7, 6), device=device).float()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    window = (3, 2, 1, 1, True, return_indices)
    ours, torchs = ours_and_torchs("max_pool2d", x.requires_grad_(), *window)
    assert_same(ours, torchs, exactly=True)
    assert_same_gradients(ours, torchs, [x], exactly=True)


@pytest.mark.parametrize(
    ("kernel", "return_indices", "size"), [((15, 17), False, 1), ((16, 16), False, 8), ((2, 2), True, 8)], ids=str
)
def test_keeps_one_byte_a_window_where_that_names_its_positions(device, kernels, kernel, return_indices, size):
    # rising values: the last position wins
    x = torch.arange(17.0 * 17, device=device).view(1, 1, 17, 17).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours = lc.functional.max_pool2d(x, kernel, return_indices=return_indices)
    values = ours[0] if return_indices else ours
    assert sum(t.nbytes for t in saved) == values.numel() * size
    assert_same_gradients(values, F.max_pool2d(x, kernel), [x], exactly=True)


def test_traces_symbolically_under_auto():
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(lc.nn.MaxPool2d(2), lc.nn.ConvBlock(1, 2, 3, pool=2)))
    x = torch.randn(1, 1, 12, 12)
    assert traced(x).shape == (1, 2, 2, 2)


@pytest.mark.parametrize("change", [{"ceil_mode": None}, {"ceil_mode": 1}, {"kernel_size": True}, {"input": None}])
def test_unusual_arguments_are_taken_or_refused_as_torch_does(kernels, change):
    call = {"input": torch.zeros(1, 1, 4, 4), "kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1} | change
    call.setdefault("ceil_mode", False)
    assert error_of(lc.functional.max_pool2d, *call.values()) == error_of(F.max_pool2d, *call.values())


def test_empty_batch(kernels):
    ours, torchs = ours_and_torchs("max_pool2d", torch.randn(0, 3, 6, 6), 2)
    assert_same(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_dtypes_go_to_torch(kernels, dtype):
    x = torch.arange(32).view(1, 2, 4, 4).to(dtype)
    assert "no kernel" in operator.operator_unsupported_reason(x, (2, 2), Window((2, 2), (0, 0), (1, 1)), False)
    assert_same(lc.functional.max_pool2d(x, 2), F.max_pool2d(x, 2))


def test_indices_changed_before_backward_are_noticed(kernels):
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    values, indices = lc.functional.max_pool2d(x, 2, return_indices=True)
    indices.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


def test_keeps_the_dtype_under_autocast(device, kernels):
    x = torch.randn(1, 1, 4, 4, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert lc.functional.max_pool2d(x, 2).dtype is F.max_pool2d(x, 2).dtype


@pytest.mark.parametrize(("channels_last", "return_indices"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, channels_last, return_indices):
    x = torch.randn(2, 3, 7, 6, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    window = [(3, 2), (2, 1), (1, 1), (1, 2), True]
    torch.library.opcheck(torch.ops.lightconv.max_pool2d.default, (x.requires_grad_(), *window, return_indices))
    values, where = torch.ops.lightconv.max_pool2d(x.detach(), *window, return_indices)
    torch.library.opcheck(
        torch.ops.lightconv.max_pool2d_backward.default,
        (torch.randn_like(values).requires_grad_(), where, list(x.shape), *window, channels_last),
    )


def test_torchs_operator_names_the_same_positions_as_the_kernel():
    window = [(3, 2), (2, 1), (1, 1), (2, 1), True]
    x = torch.randint(-3, 4, (2, 3, 9, 8)).float()
    kernel = torch.ops.lightconv.max_pool2d(x, *window, False)
    reference = torch.ops.lightconv.max_pool2d(x.double(), *window, False)
    assert torch.equal(kernel[0].double(), reference[0])
    assert torch.equal(kernel[1], reference[1])


@pytest.mark.parametrize("return_indices", [False, True])
def test_second_derivatives(return_indices):
    x = torch.randperm(80).view(2, 2, 5, 4).double().requires_grad_()
    window = [(3, 2), (2, 1), (1, 0), (1, 2), True]
    call = lambda x: torch.ops.lightconv.max_pool2d(x, *window, return_indices)[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(lambda x: call(x) ** 2, x)


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("name", ["triton", "auto"])
def test_compiles_without_a_graph_break(name, return_indices):
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
def test_a_byte_beyond_the_window_names_no_pixel(device, kernels, kernel_size):
    torch.manual_seed(0)
    g, code = torch.randn(2, 3, 4, 5, device=device), torch.randint(0, 6, (2, 3, 4, 5), device=device).byte()
    code[..., ::2] = 255
    size = [4 * kernel_size[0] + kernel_size[0] - 1, 5 * kernel_size[1]]  # the last rows are left over
    window = (kernel_size, kernel_size, (0, 0), (1, 1), False)
    maps = torch.ops.lightconv.max_pool2d_backward(g, code, (2, 3, *size), *window, False)
    assert torch.equal(maps, window_argmax.unpool(g, code, kernel_size, size))
