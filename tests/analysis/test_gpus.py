"""Occupancy against CUDA's rules worked out by hand, and data sheets against rates per clock cycle."""

import pytest

from lightconv.analysis.gpus import GPUS, MULTIPROCESSOR, UNSUPPORTED, blocks_at_once, find_gpu, occupancy
from lightconv.kernels.tiles import ARCHITECTURES

KIB = 1024


@pytest.mark.parametrize(
    ("architecture", "warps", "registers", "shared", "blocks"),
    [
        # registers: a scheduler has 512 for each lane, and gives them to a warp's threads in pieces of 8
        ("sm_80", 4, 168, 0, 3),  # 512 // 168 = 3 warps a scheduler, 12 in all
        ("sm_80", 8, 168, 0, 1),
        ("sm_80", 4, 169, 0, 2),  # as 176: 512 // 176 = 2 a scheduler, 8 warps
        ("sm_80", 4, 128, 0, 4),  # 512 // 128 = 4 a scheduler, 16 warps
        ("sm_80", 4, 255, 0, 2),  # as 256: 2 a scheduler, 8 warps
        ("sm_90", 8, 97, 0, 2),  # as 104: 512 // 104 = 4 a scheduler, 16 warps
        ("sm_90", 8, 96, 0, 2),  # 512 // 96 = 5 a scheduler, 20 warps
        ("sm_80", 1, 8, 0, 32),  # at most 32 blocks
        ("sm_86", 1, 8, 0, 16),
        ("sm_89", 1, 8, 0, 24),
        ("sm_80", 16, 16, 0, 4),  # at most 64 warps
        ("sm_86", 16, 16, 0, 3),  # at most 48
        ("sm_120", 32, 16, 0, 1),
        ("sm_80", 4, 32, 40 * KIB, 4),  # shared: 164 KiB // (40 + 1) = 4
        ("sm_80", 4, 32, 40 * KIB + 1, 3),
        ("sm_80", 4, 32, 163 * KIB, 1),
        ("sm_80", 4, 32, 163 * KIB + 1, 0),
        ("sm_86", 4, 32, 99 * KIB, 1),
        ("sm_86", 4, 32, 99 * KIB + 1, 0),
        ("sm_90", 8, 106, 82_000, 2),  # 233,472 // 83,024 = 2; registers: 512 // 112 = 4, 16 warps, 2 blocks
        ("sm_90", 4, 32, 227 * KIB + 1, 0),
        ("gfx942", 8, 122, 0, 2),  # 512 // 128 = 4 a scheduler, 16 waves
        ("gfx942", 4, 122, 32 * KIB, 2),  # 64 KiB // 32, nothing reserved
        ("gfx942", 4, 122, 64 * KIB + 1, 0),
    ],
)
def test_blocks_at_once(architecture, warps, registers, shared, blocks):
    assert blocks_at_once(architecture, warps, registers, shared) == blocks


def test_occupancy():
    assert occupancy("sm_90", 8, 106, 82_000) == 16 / 64
    assert occupancy("sm_86", 4, 168, 0) == 12 / 48
    assert occupancy("sm_80", 4, 32, 200 * KIB) == 0


# Multiplications and additions in half precision per cycle and multiprocessor, with sums in float32: tensor cores of
# the third, fourth and fifth generation, Ada's full rate and GeForce's halved rate.
RATES = {"a100": 2048, "h100": 4096, "h200": 4096, "l40s": 1024, "rtx4090": 512, "rtx5090": 512, "b200": 8192}


@pytest.mark.parametrize("name", GPUS)
def test_rates_agree_with_clock(name):
    gpu = GPUS[name]
    tolerance = 0.06 if name == "b200" else 0.03  # the B200's rates are not at its highest clock
    cycles = gpu.multiprocessors * gpu.clock
    assert gpu.half / cycles == pytest.approx(RATES[name], rel=tolerance)
    assert gpu.tf32 / gpu.half == pytest.approx(0.5, rel=tolerance)
    lanes = 64 if name == "a100" else 128
    assert gpu.float32 / cycles == pytest.approx(2 * lanes, rel=0.1)  # the H100's at a higher clock than its products


@pytest.mark.parametrize("name", GPUS)
def test_architecture_of_gpu(name):
    assert GPUS[name].architecture in MULTIPROCESSOR


def test_limits_of_architectures():
    assert set(MULTIPROCESSOR) == set(ARCHITECTURES)
    assert not set(UNSUPPORTED) & set(GPUS)


def test_peak_by_kind():
    gpu = GPUS["h100"]
    assert [gpu.peak(kind) for kind in ("half", "tf32", "ieee")] == [gpu.half, gpu.tf32, gpu.float32]


def test_find_gpu():
    assert find_gpu("NVIDIA H100 80GB HBM3") == GPUS["h100"]
    assert find_gpu("NVIDIA H100 PCIe") is None  # another clock and another memory
