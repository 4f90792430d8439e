"""torch's counter finds in lightconv's layers what it finds in torch's."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lightconv as lc


def flops(model, images):
    """Of the forward pass, and of both."""
    counts = []
    with FlopCounterMode(display=False) as counter:
        output = model(images)
        counts.append(counter.get_total_flops())
        output.sum().backward()
        counts.append(counter.get_total_flops())
    return counts


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_counts_as_torchs_and_each_gradient_again(kernels, groups):
    images = torch.randn(2, 4, 9, 8, requires_grad=True)
    model = nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=groups)
    forward, both = flops(copy.deepcopy(model), images)
    lc.swap(model)
    assert flops(model, images) == [forward, 3 * forward]
    assert both == 3 * forward or groups > 1, "torch counts a grouped weight's gradient as if it were whole"


@pytest.mark.parametrize("channels", [3, 16])
def test_a_block_counts_as_its_convolution(kernels, channels):
    images = torch.randn(2, channels, 8, 8, requires_grad=True)
    block = lc.nn.ConvBlock(channels, 4, 3, padding=1, pool=2)
    assert flops(block, images) == flops(nn.Conv2d(channels, 4, 3, padding=1), images)
