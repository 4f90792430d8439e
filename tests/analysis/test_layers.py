"""Layers of known networks, and the calls that form one block."""

import pytest
import torch
import torchvision
from torch import nn

import lightconv as lc
from lightconv.analysis.layers import convert, find_layers, network_layers
from lightconv.errors import InputError


def on_meta(model, *images):
    return find_layers(model.to("meta"), torch.empty(images, device="meta"))


def kinds(layers):
    return [type(layer.module).__name__ for layer in layers]


def pooled(layer):
    return getattr(layer.module, "pool", 1) not in {1, (1, 1)}


def network(name, batch_size=2, dtype=torch.float32, memory_format=torch.contiguous_format):
    return network_layers(name, batch_size, dtype, memory_format)


def test_lenet():
    layers = network("lenet")
    assert [layer.name for layer in layers] == ["conv1", "conv2"]
    assert kinds(layers) == ["ConvBlock"] * 2
    assert all(map(pooled, layers))
    assert [type(part).__name__ for part in layers[0].unfused] == ["Conv2d", "ReLU", "MaxPool2d"]


def test_vgg16():
    layers = network("vgg16")
    assert kinds(layers) == ["ConvBlock"] * 13
    assert [number for number, layer in enumerate(layers, 1) if pooled(layer)] == [2, 4, 7, 10, 13]
    assert {layer.module.activation for layer in layers} == {"relu"}


def test_resnet50():
    layers = network("resnet50")
    assert kinds(layers) == ["Conv2d", "MaxPool2d", *["Conv2d"] * 52]
    assert {type(layer.unfused) for layer in layers} == {nn.Conv2d, nn.MaxPool2d}


def test_mobilenet_v2():
    layers = network("mobilenet_v2")
    assert kinds(layers) == ["Conv2d"] * 52
    assert sum(layer.module.groups == layer.module.in_channels for layer in layers) == 17


@pytest.mark.parametrize("name", ["lenet", "vgg16", "resnet50"])
def test_only_first_images_need_no_gradient(name):
    first, *others = network(name)
    assert not first.images.requires_grad
    assert others
    assert all(layer.images.requires_grad for layer in others)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtype_and_memory_format(dtype, memory_format):
    for layer in network("vgg16", 3, dtype, memory_format):
        assert layer.images.shape[0] == 3
        for tensor in (layer.images, layer.module.weight):
            assert tensor.is_contiguous(memory_format=memory_format)
            assert (tensor.dtype, tensor.device.type) == (dtype, "meta")


def test_unknown_network():
    with pytest.raises(InputError, match="no network 'vgg17': lenet, or one of torchvision"):
        network("vgg17")


class Elsewhere(nn.Module):
    """A network that calls ReLU right after a convolution, but on the images instead of the convolution's map."""

    def __init__(self):
        super().__init__()
        self.convolution, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.convolution(x) + self.relu(x)


def chain(*after):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *after)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (chain(nn.ReLU(), nn.MaxPool2d(3, 2)), ["ConvBlock", "MaxPool2d"]),  # windows overlap
        (chain(nn.ReLU(), nn.MaxPool2d(2, 3)), ["ConvBlock", "MaxPool2d"]),  # or leave pixels out
        (chain(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)), ["ConvBlock", "MaxPool2d"]),
        (chain(nn.ReLU(), nn.MaxPool2d(2, padding=1)), ["ConvBlock", "MaxPool2d"]),
        (chain(nn.ReLU(), nn.MaxPool2d(2, dilation=2)), ["ConvBlock", "MaxPool2d"]),
        (chain(nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2)), ["ConvBlock", "MaxPool2d"]),
        (chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), ["Conv2d", "MaxPool2d"]),
        (chain(nn.MaxPool2d(2), nn.ReLU()), ["Conv2d", "MaxPool2d"]),
        (chain(nn.GELU(), nn.MaxPool2d(2)), ["Conv2d", "MaxPool2d"]),  # not one of the fused activations
        (Elsewhere(), ["Conv2d"]),
    ],
)
def test_calls_that_form_no_block(model, expected):
    layers = on_meta(model, 2, 3, 12, 12)
    assert kinds(layers) == expected
    assert not any(map(pooled, layers))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.Tanh(), nn.Sigmoid()])
@pytest.mark.parametrize("pool", [[], [nn.MaxPool2d(2)], [nn.MaxPool2d((2, 3))]])
def test_block_of_three_calls(activation, pool):
    (layer,) = on_meta(chain(activation, *pool), 2, 3, 12, 12)
    assert kinds([layer]) == ["ConvBlock"]
    assert [type(part) for part in layer.unfused] == [nn.Conv2d, type(activation), *map(type, pool)]
    assert layer.module(layer.images).shape == chain(activation, *pool)(torch.empty(2, 3, 12, 12)).shape


def test_module_called_twice():
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    assert kinds(on_meta(nn.Sequential(convolution, nn.ReLU(), convolution), 2, 3, 8, 8)) == ["ConvBlock", "Conv2d"]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 6, (1, 3), groups=3, padding="same", padding_mode="circular", bias=False), nn.LeakyReLU()),
            *(lc.nn.ConvBlock(6, 5, 3, padding=1, dilation=(1, 2), pool=(2, 1)), nn.BatchNorm2d(5)),
            *(nn.MaxPool2d(3, 2, 1, ceil_mode=True), lc.nn.Conv2d(5, 4, 1)),
        )

    def forward(self, x):
        return self.layers(x)


def test_layer_equals_unfused():
    torch.manual_seed(0)
    model, images = Mixed(), torch.randn(2, 3, 32, 32)
    layers = find_layers(model, images)
    assert kinds(layers) == ["ConvBlock", "ConvBlock", "ConvBlock", "MaxPool2d", "Conv2d"]
    for layer in layers:
        ours, theirs = list(layer.module.parameters()), list(layer.unfused.parameters())
        assert all(a is b for a, b in zip(ours, theirs, strict=True))
        values = torch.randn(layer.images.shape)
        with lc.use_backend("triton"):
            actual = layer.module(values)
        torch.testing.assert_close(actual, layer.unfused(values))


def test_model_is_unchanged():
    with torch.device("meta"):
        model = torchvision.models.vgg11()
    types = [type(module) for module in model.modules()]
    find_layers(model, torch.empty(1, 3, 32, 32, device="meta"))
    assert [type(module) for module in model.modules()] == types
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (nn.Conv2d(3, 8, 3), "3x12x16, 8 of 3x3"),
        (nn.Conv2d(3, 6, (1, 5), (2, 1), groups=3), "3x12x16, 6 of 1x5, stride 2x1, groups 3"),
        (lc.nn.ConvBlock(3, 8, 3, dilation=2, pool=2), "3x12x16, 8 of 3x3, dilation 2, pool 2"),
        (nn.MaxPool2d(3, 2), "3x12x16, windows of 3x3, stride 2"),
    ],
)
def test_sizes_in_words(model, sizes):
    (layer,) = on_meta(nn.Sequential(model), 2, 3, 12, 16)
    assert layer.sizes == sizes


def test_a_model_is_given_its_dtype_and_its_memory_format():
    model, images = convert(nn.Conv2d(3, 4, 3), torch.empty(1, 3, 8, 8), torch.float16, torch.channels_last)
    for tensor in (model.weight, images):
        assert tensor.dtype is torch.float16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
