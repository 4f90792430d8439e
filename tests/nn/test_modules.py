"""Modules equal torch.nn's in values, gradients, printed form and state."""

import copy
from typing import get_args

import pytest
import torch
from helpers.support import assert_same, assert_same_gradients, leaves
from torch import nn

import lightconv as lc
from lightconv.functional import ACTIVATIONS, Activation

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, (1, 2), "same"])
def test_conv2d(padding_mode, padding):
    theirs = nn.Conv2d(2, 4, (3, 2), padding=padding, padding_mode=padding_mode, groups=2)
    ours = lc.nn.Conv2d(2, 4, (3, 2), padding=padding, padding_mode=padding_mode, groups=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2, 7, 6, requires_grad=True)
    assert isinstance(ours, nn.Conv2d)
    assert_same(ours(x), theirs(x))
    assert_same_gradients(ours(x), theirs(x), [x])


def test_max_pool2d():
    arguments = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True}
    x = torch.randn(2, 3, 8, 8)
    assert_same(lc.nn.MaxPool2d(**arguments)(x), nn.MaxPool2d(**arguments)(x))


def test_repr():
    assert repr(lc.nn.Conv2d(1, 2, 3, bias=False)) == repr(nn.Conv2d(1, 2, 3, bias=False))
    assert repr(lc.nn.MaxPool2d(2)) == repr(nn.MaxPool2d(2))
    assert "activation=tanh, pool=2" in repr(lc.nn.ConvBlock(1, 2, 3, activation="tanh", pool=2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", [1, 2, (2, 3)])
def test_conv_block(activation, pool):
    torch.manual_seed(0)
    block = lc.nn.ConvBlock(2, 4, 3, activation=activation, pool=pool, padding=1, padding_mode="circular")
    x = torch.randn(2, 2, 8, 9, requires_grad=True)
    maps = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), block.weight, block.bias)
    parts = nn.functional.max_pool2d(ACTIVATIONS[activation](maps), pool)
    torch.testing.assert_close(block(x), parts)
    assert_same_gradients(block(x), parts, leaves([x, block.weight, block.bias]))


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in {"gelu", "silu"}])
def test_nan_and_infinities_in_a_block(activation):
    x = torch.tensor([[[[1.0, float("nan"), -float("inf"), -float("inf")], [-2, -3, -float("inf"), float("inf")]]]])
    weight = torch.ones(1, 1, 1, 1)
    expected = nn.functional.max_pool2d(ACTIVATIONS[activation](x), 2)
    assert_same(lc.functional.conv_block(x, weight, activation=activation, pool=2), expected)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'mish': choose one of identity, relu"):
        lc.nn.ConvBlock(1, 2, 3, activation="mish")


def test_activation_type_lists_all_activations():
    assert set(get_args(Activation)) == set(ACTIVATIONS)


def test_copy_and_pickle(tmp_path):
    block = lc.nn.ConvBlock(1, 2, 3, pool=2)
    torch.save(block, tmp_path / "block.pt")
    x = torch.randn(1, 1, 8, 8)
    for twin in (copy.deepcopy(block), torch.load(tmp_path / "block.pt", weights_only=False)):
        assert_same(twin(x), block(x))
