"""Recorded launches and compiled kernels, against Triton and cuobjdump called by hand."""

import re
import subprocess
from unittest import mock

import pytest
import triton
from helpers.small_layers import compile_one, kernel_of, launches, layer
from torch import nn
from triton import knobs

from lightconv.analysis import compilation
from lightconv.analysis.compilation import (
    index_bits,
    record_launches,
    specialization,
    target,
    training_step,
)
from lightconv.analysis.machine_code import count, instructions, main_loop
from lightconv.errors import InputError
from lightconv.nn import Conv2d, ConvBlock, MaxPool2d

compiling = pytest.mark.compile


def block(filters=64):
    return layer(ConvBlock(64, filters, 3, padding=1, pool=2), 8, 64, 32, 32)


def test_interpreting_process():
    with pytest.raises(InputError, match="TRITON_INTERPRET is set"), record_launches("sm_90"):
        pass


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("sm_90", ("cuda", 90, 32)), ("sm_120", ("cuda", 120, 32)), ("gfx942", ("hip", "gfx942", 64))],
)
def test_target(architecture, expected):
    found = target(architecture)
    assert (found.backend, found.arch, found.warp_size) == expected


@pytest.mark.parametrize(
    ("ttir", "bits"),
    [
        ("tt.addptr %0, %1 : tensor<64x!tt.ptr<f16>>, tensor<64xi32>", 32),
        ("tt.addptr %0, %1 : tensor<64x32x!tt.ptr<f16>>, tensor<64x32xi64>\ntt.addptr %2, %3 : x, tensor<8xi32>", 64),
        ("tt.addptr %0, %1 : !tt.ptr<f16>, i64", 32),  # a scalar's: one address for all
    ],
)
def test_index_bits(ttir, bits):
    assert index_bits(kernel_of(ttir=ttir)) == bits


def read_by_hand(cubin, path):
    """Return registers, stack bytes, matrix instructions of the shortest loop with any, and bytes of code."""
    path.write_bytes(cubin)

    def cuobjdump(option):
        command = [knobs.nvidia.cuobjdump.path, option, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = next(line for line in cuobjdump("-res-usage").splitlines() if "REG:" in line)
    figures = dict(item.split(":") for item in usage.split())
    lines = [line for line in cuobjdump("-sass").splitlines() if line.strip().startswith("/*0") or ";" in line]
    code = {int(line.split("*/")[0].strip(" /*"), 16): line.split("*/")[1].split(";")[0].strip() for line in lines}
    products = [address for address, text in code.items() if "HMMA" in text or "HGMMA" in text]
    within = []
    for address, text in code.items():
        first = int(text.rpartition(" ")[2], 16) if "BRA" in text else address
        matrix = sum(first <= a <= address for a in products)
        within += [(address - first, matrix)] if first < address and matrix else []
    last = max(address for address, text in code.items() if text != "NOP")
    return int(figures["REG"]), int(figures["STACK"]), min(within)[1], last + 16


@compiling
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_figures_against_cuobjdump(architecture, tmp_path):
    launch = launches(block(), architecture)["conv_block"]
    source, options = specialization(launch)
    built = triton.compile(source, target=target(architecture), options=dict(options.__dict__))
    kernel = compile_one(launch)
    matrix = count(main_loop(instructions(kernel.machine_code)))["matrix"]
    figures = (kernel.registers, kernel.spilled, matrix, kernel.code_bytes)
    assert figures == read_by_hand(built.asm["cubin"], tmp_path / "kernel.cubin")
    assert (kernel.name, kernel.architecture, kernel.warps) == ("implicit_gemm", architecture, options.num_warps)


@compiling
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_instructions_by_json_and_by_columns(architecture, monkeypatch):
    for launch in launches(block(), architecture).values():
        by_json = compile_one(launch)
        assert by_json.code != ()
        assert without_operands(by_json.code) == without_operands(instructions(by_json.machine_code))
    monkeypatch.setattr("lightconv.analysis.compilation.read_cubin", refuse_json)
    by_columns = compile_one(launch).code
    assert by_columns == instructions(by_json.machine_code)


def without_operands(code):
    """Instructions as far as both outputs agree: JSON leaves out operands that an opcode implies."""
    return [instruction._replace(operands="") for instruction in code]


def refuse_json(program, option, cubin, read=compilation.read_cubin):
    """Run a program of CUDA as one without the option -json does."""
    if option == "-json":
        raise subprocess.CalledProcessError(1, program)
    return read(program, option, cubin)


@compiling
def test_shared_memory_of_stages():
    launch = launches(block(), "sm_80")["conv_block"]
    rows, columns, depth = (launch.arguments[name] for name in ("ROWS", "COLUMNS", "DEPTH"))
    ahead = launch.options["num_stages"] - 1
    assert compile_one(launch).shared == ahead * (rows + columns) * depth * 2


@compiling
def test_figures_against_amd_notes():
    kernel = compile_one(launches(block(), "gfx942")["conv_block"])
    notes = dict(re.findall(r"^; (\w+)(?:: | = )(\d+)", kernel.machine_code, re.MULTILINE))
    assert kernel.registers == int(notes["TotalNumVgprs"])
    assert kernel.code_bytes == int(notes["codeLenInByte"])
    assert kernel.spilled == int(notes["ScratchSize"]) == 0


GEMM, SPLIT = ["implicit_gemm"], ["ordered_sum"]
STEPS = {
    "a block of its network's own images": (
        layer(ConvBlock(1, 6, 5, padding=2, pool=2), 64, 1, 28, 28, needs_gradient=False),
        [("conv_block", GEMM), ("conv2d_weight_gradient", ["weight_gradient", *SPLIT])],
    ),
    "a block": (
        layer(ConvBlock(6, 16, 5, pool=2), 64, 6, 14, 14),
        [
            ("conv_block", GEMM),
            ("conv2d_input_gradient", GEMM),
            ("conv2d_weight_gradient", ["weight_gradient", *SPLIT]),
        ],
    ),
    "1x1, torch's matrix product": (
        layer(Conv2d(16, 32, 1), 8, 16, 14, 14),
        [("conv2d", []), ("conv2d_input_gradient", []), ("conv2d_weight_gradient", [])],
    ),
    "depthwise": (
        layer(Conv2d(16, 16, 3, padding=1, groups=16), 8, 16, 14, 14),
        [
            ("conv2d", ["depthwise.forward"]),
            ("conv2d_input_gradient", ["depthwise.input_gradient"]),
            ("conv2d_weight_gradient", ["depthwise.weight_gradient", *SPLIT]),
        ],
    ),
    "max-pooling": (
        layer(MaxPool2d(3, 2, 1), 8, 16, 14, 14),
        [("max_pool2d", ["max_pooling.forward"]), ("max_pool2d_backward", ["max_pooling.backward"])],
    ),
    "max-pooling of images that need no gradient": (
        layer(MaxPool2d(3, 2, 1), 8, 16, 14, 14, needs_gradient=False),
        [("max_pool2d", ["max_pooling.forward"])],
    ),
}


@compiling
@pytest.mark.parametrize("name", STEPS)
def test_launches_of_training_step(name):
    given, expected = STEPS[name]
    calls = training_step(given.module, given.images, "sm_80")
    assert [(call.operator, [launch.name for launch in call.launches]) for call in calls] == expected


@compiling
def test_recorded_launch():
    given = block(256)
    launch = launches(given, "sm_90")["conv_block"]
    rows, columns = launch.arguments["ROWS"], launch.arguments["COLUMNS"]
    assert launch.architecture == "sm_90"
    assert launch.arguments["input_ptr"].shape == given.images.shape
    assert launch.grid == (8 * 32 * 32 // rows * 256 // columns,)
    assert launch.options["num_warps"] in {4, 8}
    assert isinstance(launch.arguments["LOADER"], str)


@compiling
def test_recording_ends():
    before = triton.runtime.jit.JITFunction.run
    with record_launches("sm_90") as made:
        pass
    assert (made, triton.runtime.jit.JITFunction.run) == ([], before)


@compiling
def test_equal_launches_compile_once():
    pools = [layer(MaxPool2d(size, 2), 8, 16, 14, 14) for size in (2, 3, 2)]
    made = [launches(pool, "sm_80")["max_pool2d"] for pool in pools]
    with mock.patch.object(compilation.triton, "compile", wraps=triton.compile) as compiler:
        kernels = compilation.compile_kernels(made)
    assert compiler.call_count == 2
    assert kernels[0] is kernels[2]
    assert kernels[0].machine_code != kernels[1].machine_code


@compiling
def test_compile_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    launch = launches(layer(nn.MaxPool2d(2), 8, 16, 14, 14), "sm_80")["max_pool2d"]
    first, second = (compile_one(launch).seconds for _ in range(2))
    assert 0.01 < first < 100
    assert second is None
