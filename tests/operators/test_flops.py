"""torch's counter counts the same operations in lightconv's layers as in torch's."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lightconv as lc


def count_flops(model, images):
    """Return the operations of the forward pass, and of forward and backward together."""
    with FlopCounterMode(display=False) as counter:
        output = model(images)
        forward = counter.get_total_flops()
        output.sum().backward()
        return forward, counter.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(kernels, groups):
    images = torch.randn(2, 4, 9, 8, requires_grad=True)
    model = nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=groups)
    forward, both = count_flops(copy.deepcopy(model), images)
    lc.swap(model)
    # each of the two gradients costs as much as the forward pass
    assert count_flops(model, images) == (forward, 3 * forward)
    assert both == 3 * forward or groups > 1, "torch counts a grouped weight's gradient as if it were whole"


@pytest.mark.parametrize("channels", [3, 16])
def test_block(kernels, channels):
    images = torch.randn(2, channels, 8, 8, requires_grad=True)
    block = lc.nn.ConvBlock(channels, 4, 3, padding=1, pool=2)
    assert count_flops(block, images) == count_flops(nn.Conv2d(channels, 4, 3, padding=1), images)
