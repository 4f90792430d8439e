from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers.blocks import check, random_block
from helpers.support import assert_same, assert_same_gradients, call_and_record_saved, leaves, record_calls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lightconv as lc
from lightconv.analysis.compilation import record_launches
from lightconv.functional import ACTIVATIONS
from lightconv.kernels import launch
from lightconv.kernels.window import Window
from lightconv.operators import conv_block as operator
from lightconv.operators import window_argmax

CASES, CHUNKS = 2000, 40
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_geometry(chunk):
    compared = [check(random_block(seed)) for seed in range(chunk, CASES, CHUNKS)]
    assert sum(compared) > len(compared) / 2, "gradients were hardly compared"


def parts(x, w, b, activation, pool, **options):
    return F.max_pool2d(ACTIVATIONS[activation](F.conv2d(x, w, b, **options)), pool)


def window(stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    return Window(stride, padding, dilation)


def integers(*shape, device="cpu", dtype=torch.float32):
    return torch.randint(-3, 4, shape, device=device).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool", [2, (3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_exact_on_small_integers(device, kernels, dtype, pool, channels_last):
    torch.manual_seed(0)
    x, w, b = (integers(*s, device=device, dtype=dtype) for s in [(2, 16, 13, 12), (24, 16, 3, 3), (24,)])
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = lc.functional.conv_block(x, w, b, padding=1, pool=pool)
    torchs = parts(x, w, b, "relu", pool, padding=1)
    assert_same(ours, torchs, exactly=True)
    assert_same_gradients(ours, torchs, [x, w, b], exactly=True)


@pytest.mark.parametrize("activation", operator.NON_DECREASING)
@pytest.mark.parametrize(
    "pixels",
    [
        [1, 1, 1, 1],
        [0, -1, -2, -3],
        [1, NAN, 2, 3],
        [NAN, 5, NAN, INF],
        [-INF, -INF, -INF, -INF],
        [-INF, -1, INF, INF],
    ],
)
def test_ties_nan_and_infinities(device, kernels, activation, pixels):
    x = torch.tensor(pixels, dtype=torch.float32, device=device).view(1, 1, 2, 2).requires_grad_()
    w = torch.ones(1, 1, 1, 1, device=device)
    ours = lc.functional.conv_block(x, w, activation=activation, pool=2)
    torch.testing.assert_close(ours, parts(x, w, None, activation, 2), equal_nan=True)
    # after tanh and sigmoid, torch multiplies the zero gradient of every other NaN by NaN: pool first
    assert_same_gradients(ours, ACTIVATIONS[activation](F.max_pool2d(F.conv2d(x, w), 2)), [x])


class OperatorNames(TorchDispatchMode):
    """Recorder of the names of lightconv's operators, in the order of their calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lightconv":
            self.names.append(func._schema.name.removeprefix("lightconv::"))
        return func(*args, **(kwargs or {}))


def test_operators_called(kernels):
    x, w, b = integers(2, 3, 8, 8), integers(4, 3, 3, 3), integers(4)
    with OperatorNames() as called:
        lc.functional.conv_block(x, w, b, pool=2).sum().backward()
    assert called.names == ["conv_block", "conv2d_input_gradient", "conv2d_weight_gradient"]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("pool", [1, 2, (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by the kernels, by torch
def test_many_channels_unpool_the_gradient_once(device, kernels, dtype, activation, pool):
    torch.manual_seed(0)
    x, w, b = (integers(*s, device=device, dtype=dtype) for s in [(2, 16, 9, 8), (8, 16, 3, 3), (8,)])
    pool_size = pool if isinstance(pool, tuple) else (pool, pool)
    ours, _ = torch.ops.lightconv.conv_block(x, w, b, *window(padding=(1, 1)), 1, activation, pool_size)
    with OperatorNames() as called:
        gradients = torch.autograd.grad(ours, [x, w, b], torch.ones_like(ours))
    unpooled = [] if (activation, pool) == ("tanh", 1) else ["max_pool2d_backward"]
    assert called.names == [*unpooled, "conv2d_input_gradient", "conv2d_weight_gradient"]
    pooled = F.max_pool2d(F.conv2d(x, w, b, padding=1), pool)
    expected = torch.autograd.grad(ACTIVATIONS[activation](pooled), [x, w, b], torch.ones_like(ours))
    for gradient, torchs in zip(gradients, expected, strict=True):
        assert_same(gradient, torchs, exactly=activation == "relu")


@pytest.mark.compile
@pytest.mark.parametrize(("channels", "fused"), [(6, True), (16, False)])
def test_auto_serves_gradients_of_a_pooled_map(channels, fused):
    images = torch.empty(2, channels, 8, 8, device="meta")
    if fused:
        grad = torch.empty(2, 8, 4, 4, device="meta")
        argmax = torch.empty(2, 8, 4, 4, dtype=torch.uint8, device="meta")
        pool = (2, 2)
    else:
        # un-pooled and written: cuDNN can read it
        grad = torch.empty(2, 8, 8, 8, device="meta")
        argmax = None
        pool = (1, 1)
    options = ([8, channels, 3, 3], *window(padding=(1, 1)), 1, pool, False, True)
    weight_gradient = torch.ops.lightconv.conv2d_weight_gradient.default
    with record_launches("sm_90") as launches:
        weight_gradient._op_dk(torch._C.DispatchKey.CUDA, grad, argmax, images, *options)
    assert bool(launches) == fused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"activation": "gelu"}, "no kernel for gelu"),
        ({"pool": (5, 4)}, "more than 16 pixels"),
        ({"pool": (9, 1)}, "larger than the map"),
        ({"groups": 3, "weight": torch.ones(3, 1, 3, 3)}, "depthwise"),
        ({"input": torch.ones(1, 3, 8, 8, dtype=torch.float64)}, "differ in device or dtype"),
    ],
)
def test_unsupported_reason(arguments, reason):
    call = {
        "input": torch.ones(1, 3, 8, 8),
        "weight": torch.ones(4, 3, 3, 3),
        "bias": None,
        "window": window(padding=(1, 1)),
        "groups": 1,
        "activation": "relu",
        "pool": (2, 2),
    }
    assert reason in operator.operator_unsupported_reason(**call | arguments)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pool", [(5, 4), 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_composition(kernels, activation, pool, groups):
    x, w = torch.randn(2, 3, 10, 9, requires_grad=True), torch.randn(6, 3 // groups, 3, 3, requires_grad=True)
    ours = lc.functional.conv_block(x, w, activation=activation, pool=pool, groups=groups)
    torchs = parts(x, w, None, activation, pool, groups=groups)
    assert_same(ours, torchs)
    assert_same_gradients(ours, torchs, [x, w])


@pytest.mark.parametrize("pool", [0, -1, (1, 2, 3), "2", None])
def test_bad_pool(kernels, pool):
    x, w = torch.ones(1, 1, 6, 6), torch.ones(1, 1, 3, 3)
    with pytest.raises((RuntimeError, TypeError)) as ours:
        lc.functional.conv_block(x, w, pool=pool)
    with pytest.raises(ours.type):
        F.max_pool2d(F.conv2d(x, w), pool)


def test_saves_images_and_one_byte_per_element(kernels):
    x, w, b = integers(2, 3, 8, 8).detach(), integers(4, 3, 3, 3), integers(4)
    _, saved = call_and_record_saved(lambda: lc.functional.conv_block(x, w, b, padding=1, pool=2))
    assert sorted(tensor.nbytes for tensor in saved) == [2 * 4 * 4 * 4, x.numel() * 4]


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_needed_gradients(device, kernels, needed, activation):
    tensors = [torch.randn(s, device=device) for s in [(2, 3, 6, 6), (4, 3, 3, 3), (4,)]]
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    ours, torchs = lc.functional.conv_block(*tensors, activation=activation, pool=2), parts(*tensors, activation, 2)
    assert_same_gradients(ours, torchs, leaves(tensors))


class OperatorCall(NamedTuple):
    """Arguments of the operator lightconv::conv_block."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str
    pool: tuple[int, int]


def operator_calls():
    x, w, b = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 2), torch.randn(6)
    single = OperatorCall(x, w, b, (2, 1), (1, 0), (1, 2), groups=2, activation="relu", pool=(2, 1))
    double = single._replace(input=x.double(), weight=w.double(), bias=b.double())
    channels_last = single._replace(input=x.contiguous(memory_format=torch.channels_last), bias=None)
    return [
        single,
        channels_last._replace(activation="tanh", pool=(2, 2)),
        single._replace(activation="sigmoid", pool=(1, 1)),
        double._replace(activation="leaky_relu", pool=(1, 2)),
        double._replace(pool=(1, 1)),
    ]


@pytest.mark.parametrize("call", operator_calls())
def test_opcheck(call):
    input, weight, bias = (
        None if tensor is None else tensor.clone(memory_format=torch.preserve_format).requires_grad_()
        for tensor in (call.input, call.weight, call.bias)
    )
    trained = call._replace(input=input, weight=weight, bias=bias)
    torch.library.opcheck(torch.ops.lightconv.conv_block.default, tuple(trained))
    output, argmax = torch.ops.lightconv.conv_block(*call)
    # the schema's empty tensor: no argmax is kept
    if argmax.numel() == 0:
        return
    grad = torch.randn_like(output).requires_grad_()
    channels_last = output.stride(1) == 1
    options = (call.stride, call.padding, call.dilation, call.groups, call.pool, channels_last)
    torch.library.opcheck(
        torch.ops.lightconv.conv2d_input_gradient.default,
        (grad, argmax, weight, list(input.shape), *options),
    )
    torch.library.opcheck(
        torch.ops.lightconv.conv2d_weight_gradient.default,
        (grad, argmax, input, list(weight.shape), *options, True),
    )


@pytest.mark.parametrize("activation", operator.NON_DECREASING)
@pytest.mark.parametrize("pool", [(1, 1), (2, 1)])
def test_second_derivatives(activation, pool):
    torch.manual_seed(0)
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 2, 5, 4), (4, 1, 3, 2), (4,)]]
    call = lambda x, w, b: torch.ops.lightconv.conv_block(x, w, b, (2, 1), (1, 1), (1, 2), 2, activation, pool)[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("channels", [2, 16])
def test_second_derivatives_by_the_kernels(device, activation, channels):
    torch.manual_seed(0)
    sizes = [(2, channels, 6, 5), (4, channels, 3, 2), (4,)]
    tensors = [torch.randint(-2, 3, s, device=device).float() / 4 for s in sizes]
    results = []
    for block in (lc.functional.conv_block, parts):
        inputs = [t.clone().requires_grad_() for t in tensors]
        with lc.use_backend("triton"):
            output = block(*inputs, activation=activation, pool=2)
            first = torch.autograd.grad((output**2).sum(), inputs, create_graph=True)
            results.append(torch.autograd.grad(sum((g**2).sum() for g in first), inputs))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(device, kernels, dtype):
    x, w, b = (integers(*s, device=device) for s in [(2, 3, 6, 6), (4, 3, 3, 3), (4,)])
    with torch.autocast(device, dtype):
        ours, torchs = lc.functional.conv_block(x, w, b, pool=2), parts(x, w, b, "relu", 2)
        assert_same(ours, torchs, exactly=True)
    ours.sum().backward()
    assert {t.grad.dtype for t in (x, w, b)} == {torch.float32}


@pytest.mark.parametrize("name", ["triton", "auto"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_torch_compile(name, activation):
    x, w = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    call = lambda x, w: lc.functional.conv_block(x, w, activation=activation, pool=2)  # noqa: E731
    with lc.use_backend(name):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x, w), call(x, w))
        assert_same_gradients(compiled(x, w), call(x, w), [x, w])


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_torch_export_with_a_dynamic_batch(name):
    model = lc.nn.ConvBlock(3, 4, 3, pool=2).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with lc.use_backend(name):
        program = torch.export.export(model, (torch.randn(2, 3, 6, 6),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(program.module()(x), parts(x, model.weight, model.bias, "relu", 2))
    targets = {str(node.target) for node in program.graph.nodes}
    assert ("lightconv.conv_block.default" in targets) == (name == "triton")


@pytest.mark.parametrize("dims", [(0, None, None), (0, 0, None), (None, 0, 0), (0, None, 0), (1, None, None)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("pool", [1, 2])
def test_vmap(kernels, monkeypatch, dims, activation, pool):
    launched = record_calls(monkeypatch, operator.implicit_gemm, "forward")
    torch.manual_seed(0)
    tensors = []
    for shape, dim in zip([(2, 3, 6, 6), (4, 3, 3, 3), (4,)], dims, strict=True):
        mapped = list(shape)
        if dim is not None:
            mapped.insert(dim, 3)
        tensors.append(integers(*mapped))
    ours = torch.func.vmap(lambda x, w, b: lc.functional.conv_block(x, w, b, activation=activation, pool=pool), dims)
    torchs = torch.func.vmap(lambda x, w, b: parts(x, w, b, activation, pool), dims)
    torch.testing.assert_close(ours(*tensors), torchs(*tensors))
    assert len(launched) == 1
    assert_same_gradients(ours(*tensors), torchs(*tensors), tensors)


def test_vmap_of_an_image_without_a_batch(kernels):
    x, w = integers(4, 3, 6, 6), integers(4, 3, 3, 3)
    ours = torch.func.vmap(lambda x: lc.functional.conv2d(x, w, padding=1))(x)
    assert_same(ours, F.conv2d(x, w, padding=1), exactly=True)


def test_per_sample_gradients(kernels):
    x, w = integers(4, 3, 6, 6), integers(4, 3, 3, 3)
    gradients = [
        torch.func.vmap(torch.func.grad(lambda w, x, block=block: block(x, w).square().sum()), (None, 0))(w, x)
        for block in (lambda x, w: lc.functional.conv_block(x, w, pool=2), lambda x, w: parts(x, w, None, "relu", 2))
    ]
    assert_same(*gradients, exactly=True)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_same_bits_twice_and_in_deterministic_mode(device, kernels, activation):
    torch.manual_seed(0)
    tensors = [torch.randn(s, device=device, requires_grad=True) for s in [(4, 6, 15, 15), (16, 6, 5, 5), (16,)]]
    calls = [
        lambda: lc.functional.conv_block(*tensors, activation=activation, pool=2),
        lambda: lc.functional.max_pool2d(lc.functional.conv2d(*tensors, stride=2), 3, 2, 1),
        lambda: lc.functional.conv2d(tensors[0], tensors[1].view(96, 1, 5, 5)[:12], groups=6),
    ]
    for call in calls:
        used = [t for t in tensors if t is not tensors[2]]
        runs = []
        for deterministic in (False, False, True):
            torch.use_deterministic_algorithms(deterministic)
            try:
                output = call()
                runs.append((output, *torch.autograd.grad(output.square().sum(), used)))
            finally:
                torch.use_deterministic_algorithms(False)
        assert_same(runs[0], runs[1], exactly=True)
        assert_same(runs[0], runs[2], exactly=True)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "gfx942"])
def test_reaches_beyond_32_bits(kernels, monkeypatch, architecture):
    monkeypatch.setattr(launch, "INTERPRETED_AS", architecture)
    far = 2**31 + 8
    storage = torch.empty(far + 4096, dtype=torch.float16)  # only the pages that are touched are ever allocated
    x = storage.as_strided((2, 16, 6, 6), (far, 1, 96, 16))
    x.copy_(torch.randint(-3, 4, x.shape))
    w = torch.randint(-3, 4, (16, 16, 3, 3)).half().requires_grad_()
    ours, torchs = lc.functional.conv_block(x, w, pool=2), parts(x.contiguous(), w, None, "relu", 2)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
    assert_same_gradients(ours, torchs, [w], exactly=True)


def test_read_is_the_adjoint_of_unpool():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    values, argmax = window_argmax.max_pool(maps, (2, 3), relu=True)
    alive = values > 0
    assert torch.equal(window_argmax.read(maps, argmax, (2, 3)), torch.where(alive, values, 0))
    cotangent = torch.randn_like(values)
    unpooled = window_argmax.unpool(cotangent, argmax, (2, 3), (7, 8))
    torch.testing.assert_close((unpooled * maps).sum(), (cotangent * alive * values).sum())
