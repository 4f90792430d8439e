"""Worked examples of a lecture on convolutional networks, computed by the kernels."""

import pytest
import torch
from scipy.signal import convolve2d
from torch import Tensor

import lightconv as lc

pytestmark = pytest.mark.usefixtures("kernels")


def table(rows: str) -> Tensor:
    """Parse a table of numbers, as on the blackboard, to a (1, 1, h, w) tensor."""
    lines = rows.strip().splitlines()
    return torch.tensor([list(map(float, line.split())) for line in lines])[None, None]


IMAGE = table("""
    -1 -1 -1 -1 -1 -1
    -1 -1  1 -1 -1 -1
    -1  1  1  1 -1 -1
    -1 -1  1 -1 -1 -1
    -1 -1 -1 -1 -1 -1
    -1 -1 -1 -1 -1 -1
""")
CROSS = table("""
    -1  1 -1
     1  1  1
    -1  1 -1
""")
LINE = table("""
    -1 -1 -1
     1  1  1
    -1 -1 -1
""")
CROSS_MAP = table("""
     1 -1  1 -3
    -1  9 -1  1
     1 -1  1 -3
    -3  1 -3 -1
""")
LINE_MAP = table("""
    1 -1  1  1
    3  5  3  5
    1 -1  1  1
    1  1  1  3
""")


def test_cross_detector():
    response = lc.functional.conv2d(IMAGE, CROSS)
    assert torch.equal(response, CROSS_MAP)
    centre, right = response[0, 0, 1, 1:3]
    assert (centre, right) == (9, -1)


def test_zero_padding_keeps_the_size():
    response = lc.functional.conv2d(IMAGE, CROSS, padding=1)
    assert response.shape == IMAGE.shape
    assert torch.equal(response[..., 1:-1, 1:-1], CROSS_MAP)
    assert torch.equal(response, lc.functional.conv2d(IMAGE, CROSS, padding="same"))
    # the corner sees four pixels, all -1, under the filter's lower right 1 1 / 1 -1
    assert response[0, 0, 0, 0] == -2


def test_two_kernels_give_two_maps():
    maps = lc.functional.conv2d(IMAGE, torch.cat([CROSS, LINE]))
    assert torch.equal(maps, torch.cat([CROSS_MAP, LINE_MAP], 1))


def test_two_input_channels_are_summed():
    image = torch.cat([IMAGE, -IMAGE], 1)
    maps = lc.functional.conv2d(image, torch.cat([CROSS, LINE], 1))
    assert torch.equal(maps, CROSS_MAP - LINE_MAP)


def test_max_pooling_table():
    image = table("""
        1 1 2 4
        5 6 7 8
        3 2 1 0
        1 2 3 4
    """)
    values, indices = lc.functional.max_pool2d(image, 2, stride=2, return_indices=True)
    assert torch.equal(values, table("6 8 \n 3 4"))
    assert torch.equal(indices, table("5 7 \n 8 15").long())


def test_max_pooling_the_cross_map():
    assert torch.equal(lc.functional.max_pool2d(CROSS_MAP, 2), table("9 1 \n 1 1"))


def test_convolution_is_correlation_with_flipped_kernel():
    kernel = table("""
        1 2 3
        0 1 0
        0 0 2
    """)
    convolution = torch.from_numpy(convolve2d(IMAGE[0, 0].numpy(), kernel[0, 0].numpy(), mode="valid"))
    assert torch.equal(lc.functional.conv2d(IMAGE, kernel.flip(2, 3))[0, 0], convolution)
    assert not torch.equal(lc.functional.conv2d(IMAGE, kernel)[0, 0], convolution)
