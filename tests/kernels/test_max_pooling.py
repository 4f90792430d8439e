"""Max-pooling's kernels compile without spills, and read neighbouring channels at once."""

import pytest
import torch
from helpers.compiling import assert_neighbours_are_read_at_once, compile_launches

from lightconv.analysis.compilation import index_bits
from lightconv.analysis.machine_code import count
from lightconv.kernels import max_pooling
from lightconv.kernels.tiles import ARCHITECTURES

pytestmark = pytest.mark.compile


RESNET = ((3, 3), (2, 2), (1, 1), (1, 1))  # window, stride, padding, dilation of its max-pooling
SIDE_BY_SIDE = ((2, 2), (2, 2), (0, 0), (1, 1))


def pooling_launches(architecture, dtype, channels_last, indices, images=8, window=RESNET):
    """Both kernels of a max-pooling of 64 channels that halves the image."""

    def empty(*size, dtype=dtype):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(size, dtype=getattr(torch, dtype), device="meta", memory_format=memory_format)

    x, y = empty(images, 64, 112, 112), empty(images, 64, 56, 56)
    where = empty(*y.shape, dtype="int64" if indices else "uint8")
    options = (*window, channels_last)
    forward = compile_launches(max_pooling.forward, (y, where), x, *options, architecture=architecture)
    return forward + compile_launches(max_pooling.backward, (x,), y, where, *options, architecture=architecture)


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("window", [RESNET, SIDE_BY_SIDE])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_max_pooling(architecture, window, dtype, channels_last, indices):
    for kernel in pooling_launches(architecture, dtype, channels_last, indices, window=window):
        assert kernel.spilled == 0, f"{kernel.name}: {kernel.spilled} bytes spilled at {kernel.registers} registers"
        if architecture.startswith("gfx"):
            continue
        if channels_last:
            assert_neighbours_are_read_at_once(kernel, dtype)
        assert index_bits(kernel) == 32, "64-bit addresses where 32 bits reach"


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_max_pooling_beyond_32_bits(architecture, indices):
    for kernel in pooling_launches(architecture, "float16", True, indices, images=2**12):
        assert kernel.spilled == 0, f"{kernel.name}: {kernel.spilled} bytes spilled at {kernel.registers} registers"
        assert index_bits(kernel) == 64


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_windows_side_by_side_are_found_without_a_loop(architecture):
    _, backward = pooling_launches(architecture, "float16", True, indices=False, window=SIDE_BY_SIDE)
    assert not backward.loop
    assert count(backward.code)["memory"] == 3, "a byte and a gradient, of eight neighbours, and one store"
