"""Bounds against the same arithmetic by hand, from shapes, tiles and data sheets."""

import math

import pytest
import torch
from helpers.small_layers import compile_one, kernel_of, launches, layer

from lightconv.analysis import layers, prediction
from lightconv.analysis.compilation import compile_kernels, training_step
from lightconv.analysis.gpus import GPUS, blocks_at_once
from lightconv.analysis.machine_code import Instruction, instructions, main_loop
from lightconv.analysis.prediction import Bounds, Work, bounds, work
from lightconv.nn import Conv2d, ConvBlock, MaxPool2d

compiling = pytest.mark.compile
H100 = GPUS["h100"]
LAUNCH = prediction.LAUNCH_SECONDS


def vgg(batch_size):
    """Return VGG's convolution of 128 channels, on images of 56 pixels' side."""
    return layer(ConvBlock(128, 128, 3, padding=1), batch_size, 128, 56, 56)


@compiling
@pytest.mark.parametrize(
    ("name", "depth", "grid"),
    [
        ("a100", 32, 16 * 56 * 56 // 128),
        ("h100", 64, 16 * 7 * 4),  # overhanging rectangles of 8x16 pixels
    ],
)
def test_bounds_of_vgg_layer(name, depth, grid):
    gpu, given = GPUS[name], vgg(16)
    launch = launches(given, gpu.architecture)["conv_block"]
    kernel = compile_one(launch)
    found = bounds(launch, kernel, gpu)
    assert [launch.arguments[n] for n in ("ROWS", "COLUMNS", "DEPTH")] == [128, 128, depth]
    assert math.prod(launch.grid) == grid

    blocks = 4  # of the busiest multiprocessor: 392 blocks on 108, 448 on 132
    steps = 9 * 128 // depth
    inside = len(main_loop(instructions(kernel.machine_code)))
    outside = (kernel.code_bytes // 16 - inside) * 8 / 4  # eight warps, four schedulers
    alone = blocks_at_once(gpu.architecture, 8, kernel.registers, kernel.shared) == 1
    flops_a_cycle = gpu.half / gpu.multiprocessors / gpu.clock
    products = 2 * 128 * 128 * depth * steps / flops_a_cycle
    loaded = (128 + 128) * depth * 2 * steps
    # two bytes read and two written per element, and one byte saved for backward
    memory = (16 * 128 * 56 * 56 * (2 + 2 + 1) + (128 * 128 * 9 + 128) * 2) / gpu.bandwidth
    waits = 2 + steps / 2  # of three stages, two are loaded ahead

    assert found.arithmetic * gpu.clock == pytest.approx(blocks * (products + alone * outside))
    assert found.memory == pytest.approx(memory)
    assert found.tiling * gpu.clock == pytest.approx(blocks * loaded / 64)
    computing = max(steps * inside * 8 / 4, alone * products)
    assert found.issue * gpu.clock == pytest.approx(blocks * (computing + outside))
    assert found.latency * gpu.clock == pytest.approx(blocks * 500 * waits / (1 if alone else 2))
    assert found.launch == LAUNCH
    assert found.seconds == max(found)
    assert getattr(found, found.name) == found.seconds


def test_largest_bound():
    found = Bounds(1.0, 2.0, 3.0, 7.0, 5.0, 6.0)
    assert (found.seconds, found.name) == (7.0, "issue")


EVEN, UNEVEN = 64, 58
PRODUCTS = [
    (ConvBlock(64, 128, 3, padding=1), EVEN, True),
    (ConvBlock(64, 128, 3, padding=1, pool=2), EVEN, True),
    (Conv2d(64, 64, 3, stride=2, padding=1), EVEN, True),
    (Conv2d(64, 128, 3, padding=1, groups=2), EVEN, True),
    (ConvBlock(64, 128, 3, padding=1, pool=2), UNEVEN, False),
    (ConvBlock(64, 128, 3, padding=1, pool=3), 57, False),  # nine rows in sixteen
    (Conv2d(64, 100, 5, padding=2), UNEVEN, False),
    (Conv2d(3, 64, 7, stride=2, padding=3), EVEN, False),  # 147 terms in steps of 32
    (Conv2d(64, 64, 3, padding=1, groups=64), EVEN, True),
    (Conv2d(64, 64, 3, padding=1, groups=64), UNEVEN, False),
    (Conv2d(64, 64, 5, stride=2, padding=2, groups=64), UNEVEN, False),
]


@compiling
@pytest.mark.parametrize(("module", "side", "even"), PRODUCTS, ids=str)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_launches_compute_whole_layer(architecture, module, side, even):
    given = layer(module, 8, module.in_channels, side, side)
    needed = prediction.products(given) / 2
    made = launches(given, architecture)
    made.pop("max_pool2d_backward", None)  # expands the block's gradient, and multiplies nothing
    computed = {name: math.prod(m.grid) * work(m).steps * work(m).multiply_adds for name, m in made.items()}
    assert len(computed) == 3
    for name, products in computed.items():
        if even and "weight" not in name:  # the last part of a weight gradient sums less than the others
            assert products == needed, name
        assert needed <= products < (1.4 if even else 6) * needed, name


def test_products():
    assert prediction.products(layer(Conv2d(64, 96, 3, 2, 1, groups=2), 8, 64, 56, 56)) == 2 * 8 * 96 * 28 * 28 * 32 * 9
    assert prediction.products(layer(MaxPool2d(2), 8, 64, 56, 56)) == 0


# a block of VGG's kind, and the elements of its tensors
BLOCK = layer(ConvBlock(64, 128, 3, padding=1, pool=2), 8, 64, 32, 32)
X, W, B, MAP, POOLED = 8 * 64 * 32 * 32, 128 * 64 * 9, 128, 8 * 128 * 32 * 32, 8 * 128 * 16 * 16
FLOPS = 2 * MAP * 64 * 9


def roofline(moved, launches=1, flops=0, gpu=H100):
    return max(moved / gpu.bandwidth, launches * LAUNCH, flops / gpu.half)


SLOW = H100._replace(bandwidth=H100.bandwidth / 100, half=H100.half / 1000)  # nothing here is as short as a launch


@pytest.mark.parametrize("gpu", [H100, SLOW])
def test_torch_at_roofline(gpu):
    convolution = roofline(2 * (X + W + B + MAP), 1, FLOPS, gpu)
    relu, pool = roofline(2 * 2 * MAP, gpu=gpu), roofline(2 * (MAP + POOLED) + 8 * POOLED, gpu=gpu)
    gradients = roofline(2 * (MAP + X + W + X + W + B), 3, 2 * FLOPS, gpu)
    back = roofline(2 * 3 * MAP, gpu=gpu) + roofline(2 * (POOLED + MAP + MAP) + 8 * POOLED, gpu=gpu)
    found = prediction.by_eager_torch(BLOCK, gpu)
    assert found.forward == pytest.approx(convolution + relu + pool)
    assert found.backward == pytest.approx(back + gradients)

    fused, fused_back = (
        roofline(2 * (MAP + POOLED) + POOLED, gpu=gpu),
        roofline(2 * (2 * MAP + POOLED) + POOLED, gpu=gpu),
    )
    found = prediction.by_inductor(BLOCK, gpu)
    assert found.forward == pytest.approx(convolution + fused)
    assert found.backward == pytest.approx(fused_back + gradients)


@pytest.mark.parametrize("gpu", [H100, SLOW])
def test_at_roofline(gpu):
    kernel = roofline(2 * (X + W + B + POOLED), 1, FLOPS, gpu)
    assert prediction.at_roofline(BLOCK, gpu) == pytest.approx((kernel, 2 * kernel))
    pooling = roofline(2 * (MAP + POOLED), gpu=gpu)
    assert prediction.at_roofline(layer(MaxPool2d(2), 8, 128, 32, 32), gpu) == pytest.approx((pooling, pooling))


def test_images_without_gradient():
    own = layer(ConvBlock(64, 128, 3, padding=1, pool=2), 8, 64, 32, 32, needs_gradient=False)
    with_gradient, without = (prediction.by_eager_torch(given, SLOW).backward for given in (BLOCK, own))
    assert with_gradient - without == pytest.approx(FLOPS / SLOW.half)


def test_by_matrix_product():
    given = layer(Conv2d(64, 128, 1), 8, 64, 32, 32)
    moved, flops = 2 * (X + 128 * 64 + MAP), 2 * MAP * 64
    for gpu in (H100, SLOW):
        assert prediction.by_matrix_product(given, gpu) == pytest.approx(roofline(moved, 1, flops, gpu))


@pytest.mark.parametrize("network", ["lenet", "vgg16", "resnet50"])
@pytest.mark.parametrize("gpu", ["a100", "b200"])
def test_inductor_against_eager(network, gpu):
    for given in layers.network_layers(network, 32, torch.float16, torch.channels_last)[:4]:
        eager, inductor = prediction.by_eager_torch(given, GPUS[gpu]), prediction.by_inductor(given, GPUS[gpu])
        assert inductor.forward <= eager.forward
        assert inductor.backward <= eager.backward
        if not isinstance(given.module, ConvBlock):
            assert inductor == eager


@compiling
def test_twice_the_images():
    launched = [launches(vgg(batch_size), "sm_90")["conv_block"] for batch_size in (64, 128)]
    single, double = (bounds(launch, compile_one(launch), H100).seconds for launch in launched)
    assert double / single == pytest.approx(2, rel=0.05)


def looping(*opcodes):
    return tuple(Instruction(16 * n, opcode, "", None, True) for n, opcode in enumerate(opcodes))


@pytest.mark.parametrize(
    ("loop", "block", "expected"),
    [
        (["HMMA.16816.F32"] * 16, Work(36, 4 * 16 * 16 * 8 * 16, 0, "half"), 36),  # of four warps: one step
        (["HMMA.16816.F32"] * 32, Work(36, 4 * 16 * 16 * 8 * 16, 0, "half"), 18),  # two
        (["HMMA.1688.F32.TF32"] * 16, Work(36, 4 * 16 * 16 * 8 * 16, 0, "tf32"), 72),  # half of one
        (["HGMMA.64x64x16.F32"] * 2, Work(36, 64 * 64 * 32, 0, "half"), 36),  # the four warps together
        (["UTCHMMA.2CTA", "HMMA.16816.F32"], Work(36, 1, 0, "half"), 36),
        (["FFMA", "LDS", "FFMA", "FADD"], Work(9, 32 * 4 * 6, 0, "ieee"), 18),
        (["LDG.E.64", "LDG.E", "FADD"], Work(9, 0, 32 * 4 * 24, "ieee"), 18),  # twelve bytes a thread, of 24
        (["LDG.E.64", "LDG.E"], Work(9, 5, 32 * 4 * 12, "ieee"), 9),
        ([], Work(9, 0, 100, "ieee"), 1),
    ],
)
def test_loop_repeats(loop, block, expected):
    assert prediction.loop_repeats(kernel_of(loop=looping(*loop)), block) == expected


SOME = [("lenet", 1, "h100"), ("mobilenet_v2", 1, "a100")]
MORE = [("lenet", 2), ("vgg16", 5), ("mobilenet_v2", 8), ("resnet50", 2)]
ALL = [(*network, gpu) for network in MORE for gpu in GPUS]


@compiling
@pytest.mark.parametrize(
    ("network", "count", "gpu"), [*SOME, *(pytest.param(*case, marks=pytest.mark.every_tile) for case in ALL)]
)
def test_predicted_kernels(network, count, gpu):
    found = layers.network_layers(network, 32, torch.float16, torch.channels_last)[:count]
    steps = [training_step(given.module, given.images, GPUS[gpu].architecture) for given in found]
    made = [launch for calls in steps for call in calls for launch in call.launches]
    assert made
    for launch, kernel in zip(made, compile_kernels(made), strict=True):
        predicted = bounds(launch, kernel, GPUS[gpu])
        assert all(0 <= bound < 1 and math.isfinite(bound) for bound in predicted)
        assert predicted.seconds >= LAUNCH
        assert predicted.memory > 0
        assert predicted.issue > 0
