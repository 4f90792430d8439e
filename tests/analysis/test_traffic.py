"""Counts against the same sums done by hand."""

import pytest
import torch
from torch import nn

import lightconv as lc
from lightconv.analysis import Traffic, compare, traffic
from lightconv.errors import InputError

NOTHING = Traffic(operators=0, launches=0, read=0, written=0, saved=0)


class Module(nn.Module):
    """A function of a parameter (4 rows of 5) and an input, as a module."""

    def __init__(self, function):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(4, 5))
        self.function = function

    def forward(self, x):
        return self.function(self.p, x)


def plain_block(**options):
    return nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.ReLU(), nn.MaxPool2d(2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float16, 2), (torch.bfloat16, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_convolution_relu_and_pooling(memory_format, dtype, size, bias, needs_gradient):
    block = plain_block(bias=bias).to(dtype=dtype, memory_format=memory_format)
    images = torch.zeros(2, 3, 8, 8, dtype=dtype).to(memory_format=memory_format).requires_grad_(needs_gradient)
    x, w, b, maps, pooled = (n * size for n in (2 * 3 * 8 * 8, 4 * 3 * 3 * 3, 4 * bias, 2 * 4 * 6 * 6, 2 * 4 * 3 * 3))
    indices = 2 * 4 * 3 * 3 * 8
    assert traffic(block, images) == Traffic(
        operators=6,
        launches=3 + 2 + (1 + bias + needs_gradient),
        read=(x + w + b) + maps + maps  # convolution, relu, pooling, and backwards
        + (pooled + maps + indices) + (maps + maps) + (maps + x + w),
        written=maps + maps + (pooled + indices) + maps + maps + (w + b + needs_gradient * x),
        saved=x + maps + indices,  # relu's result, which is pooling's input, once
    )  # fmt: skip


def test_in_place_operators():
    images = torch.zeros(2, 3, 8, 8)
    in_place = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    assert traffic(in_place, images) == traffic(plain_block(), images)


@pytest.mark.parametrize(
    ("function", "read", "written"),
    [
        (lambda x: x * x, 80, 80),  # one tensor, read once
        (lambda x: x + x.t().t(), 80, 80),
        (lambda x: x[:2] + x[2:], 80, 40),
        (lambda x: x[:1].expand(8, 5) + 1, 20, 160),  # the memory behind it
        (lambda x: x[0].unfold(0, 3, 1) + 1, 20, 36),
        (lambda x: x[:, ::2] + 1, 48, 48),
        (lambda x: x.float().exp_(), 80, 80),
        (lambda x: x.half(), 80, 40),
        (lambda x: x.clone().t_(), 80, 80),
        (lambda x: torch.add(x, 1, out=torch.empty_like(x)), 80, 80),
        (torch.zeros_like, 0, 80),
        (lambda x: x.new_zeros(3), 0, 12),
        (lambda x: torch.empty_like(x, dtype=torch.float16).copy_(x), 80, 40),
        (lambda x: torch.empty_like(x).fill_(1), 0, 80),
        (lambda x: x[:0] + 1, 0, 0),
    ],
)
def test_one_operator(function, read, written):
    expected = Traffic(operators=1, launches=1, read=read, written=written, saved=0)
    assert traffic(Module(lambda _, x: function(x)), torch.zeros(4, 5)) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.t().reshape(5, 2, 2)[1:].unsqueeze(0).expand(3, 4, 2, 2).detach(),
        lambda x: torch.ops.aten._unsafe_view(x, [20]),  # a view whose schema does not say so
        torch.empty_like,
        lambda x: x.new_empty(3),
        lambda x: x.view(20).unsqueeze_(0),
        lambda x: x.contiguous().float(),
    ],
)
def test_operators_that_move_nothing(function):
    assert traffic(Module(lambda _, x: function(x)), torch.zeros(4, 5)) == NOTHING


@pytest.mark.parametrize(
    ("function", "saved"),
    [
        (lambda p, x: p * x, 80),  # not the parameter
        (lambda p, x: p * x * x, 80),  # the product has no use for p * x: x needs no gradient
        (lambda p, x: p.exp() * x, 160),
        (lambda p, x: p[:2] * x[1:3], 40),  # what the view spans
        (lambda p, x: (p[:1] * x[1]) + (p[:1] * x[3]), 60),  # from the first to the last of the storage
        (lambda p, x: p * x[:1].expand(4, 5), 20),
        (lambda p, x: p + x, 0),
        (lambda p, x: p.detach() * x, 0),
    ],
)
def test_saved_for_backward(function, saved):
    assert traffic(Module(function), torch.zeros(4, 5)).saved == saved


def test_launches_of_weight_gradient():
    images = torch.zeros(2, 3, 8, 8)
    convolution = nn.Conv2d(3, 4, 3)
    convolution._conv_forward = lambda x, w, b: torch.ops.lightconv.conv2d(x, w, b, (1, 1), (0, 0), (1, 1), 1)
    counted = traffic(convolution, images)
    assert (counted.operators, counted.launches) == (2, 1 + 2)
    images.requires_grad_()
    counted = traffic(convolution, images)
    assert (counted.operators, counted.launches) == (3, 1 + 1 + 2)


def test_flattening_channels_last_copies():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(memory_format=torch.channels_last)
    assert traffic(network, torch.zeros(2, 3, 8, 8)).operators == 3
    assert traffic(network.to(memory_format=torch.contiguous_format), torch.zeros(2, 3, 8, 8)).operators == 2


def test_module_is_unchanged():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.zeros(2, 3, 8, 8, requires_grad=True)
    assert traffic(network, images) == traffic(network, images)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in (*network.parameters(), images))


def test_shared_parameters():
    network = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    apart = traffic(network, torch.zeros(4, 5))
    network[1] = network[0]
    assert traffic(network, torch.zeros(4, 5)).operators == apart.operators + 2  # two sums of gradients


def test_takes_no_memory():
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
    counted = traffic(huge, torch.empty(2, 10**6, device="meta"))
    assert counted.written == 4 * (2 * 10**6 + 10**12 + 10**6)


def test_error_of_torch():
    with pytest.raises(RuntimeError, match="channel"):
        traffic(nn.Conv2d(3, 4, 3), torch.zeros(2, 5, 8, 8))


def test_compare_without_triton(monkeypatch):
    monkeypatch.setattr("lightconv.operators.backend.TRITON", False)
    with pytest.raises(InputError, match="needs Triton"):
        compare(nn.ReLU(), nn.ReLU(), torch.zeros(1))


def test_traffic_in_words():
    assert str(Traffic(2, 3, 4_000, 5_000, 6_000)) == (
        "2 operators, 3 launches, 4,000 bytes read, 5,000 written, 6,000 saved for backward"
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_traffic_of_lenet_blocks(memory_format):
    lenet = lc.models.LeNet()
    ours = nn.Sequential(lenet.conv1, lenet.conv2).to(memory_format=memory_format)
    theirs = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)), *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    ).to(memory_format=memory_format)
    fused, unfused = compare(ours, theirs, torch.empty(256, 1, 28, 28).to(memory_format=memory_format))
    assert fused.launches <= 0.5 * unfused.launches
    assert fused.read + fused.written <= 0.20 * (unfused.read + unfused.written)
    assert fused.saved <= 0.25 * unfused.saved
