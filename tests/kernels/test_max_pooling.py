"""The kernels of max-pooling compile without spills, and load neighbouring channels at once."""

from typing import NamedTuple

import pytest
import torch
from helpers.compiling import assert_neighbours_are_read_at_once, compile_launches

from lightconv.analysis.compilation import index_bits
from lightconv.analysis.machine_code import count
from lightconv.kernels import max_pooling
from lightconv.kernels.tiles import ARCHITECTURES
from lightconv.kernels.window import Pair, Window

pytestmark = pytest.mark.compile


class Pooling(NamedTuple):
    kernel_size: Pair
    window: Window


RESNET = Pooling((3, 3), Window(stride=(2, 2), padding=(1, 1), dilation=(1, 1)))
SIDE_BY_SIDE = Pooling((2, 2), Window(stride=(2, 2), padding=(0, 0), dilation=(1, 1)))


def compile_both(architecture, dtype, channels_last, indices, images=8, pooling=RESNET):
    """Compile both kernels of a max-pooling of 64 channels that halves the image."""

    def empty(*size, dtype=dtype):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(size, dtype=getattr(torch, dtype), device="meta", memory_format=memory_format)

    input, output = empty(images, 64, 112, 112), empty(images, 64, 56, 56)
    argmax = empty(*output.shape, dtype="int64" if indices else "uint8")
    options = {**pooling._asdict(), "channels_last": channels_last, "architecture": architecture}
    (forward,) = compile_launches(max_pooling.forward, (output, argmax), input, **options)
    (backward,) = compile_launches(max_pooling.backward, (input,), output, argmax, **options)
    return forward, backward


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("pooling", [RESNET, SIDE_BY_SIDE])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_max_pooling(architecture, pooling, dtype, channels_last, indices):
    for kernel in compile_both(architecture, dtype, channels_last, indices, pooling=pooling):
        assert kernel.spilled == 0, f"{kernel.name}: {kernel.spilled} bytes spilled at {kernel.registers} registers"
        if architecture.startswith("gfx"):
            continue
        if channels_last:
            assert_neighbours_are_read_at_once(kernel, dtype)
        assert index_bits(kernel) == 32, "64-bit addresses where 32 bits reach"


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_max_pooling_beyond_32_bits(architecture, indices):
    for kernel in compile_both(architecture, "float16", True, indices, images=2**12):
        assert kernel.spilled == 0, f"{kernel.name}: {kernel.spilled} bytes spilled at {kernel.registers} registers"
        assert index_bits(kernel) == 64


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_side_by_side_windows_need_no_loop(architecture):
    _, backward = compile_both(architecture, "float16", True, indices=False, pooling=SIDE_BY_SIDE)
    assert not backward.loop
    assert count(backward.code)["memory"] == 3, "a byte and a gradient, of eight neighbours, and one store"
