"""Every kernel compiles for GPUs that need not be there: no spills, matrix instructions where they belong."""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.compile

ARCHITECTURES = [80, 86, 89, 90, 100, 120]
MATRIX_INSTRUCTION = {90: "HGMMA", 100: "UTC[A-Z]*MMA"}  # HMMA elsewhere
# every architecture once for each element size; what differs less, on the large ones
VARIANTS = [(arch, dtype, "int32", "tf32") for arch in ARCHITECTURES for dtype in ("fp16", "fp32")]
VARIANTS += [(arch, "fp32", "int32", "ieee") for arch in (80, 90, 100)]
VARIANTS += [(arch, "fp16", "int64", "tf32") for arch in (80, 90, 100)]
VARIANTS += [(90, "bf16", "int32", "tf32")]


def compile_kernel(kernel, pointers, constants, arch, dtype, options):
    """Compile as a launch would: pointers 16-byte aligned, other arguments 32-bit integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name] or dtype}"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(compiled):
    """Registers and bytes of stack (spills) that cuobjdump reports, and the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ["TMPDIR"]) / f"{compiled.hash}.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    sass = subprocess.run([tool, "--dump-sass", path], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK"))
    return registers, stack, sass


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def convolution_kernel(name, dtype):
    from lightconv.kernels import convolution

    sides = {
        "forward": ("PIXELS", "FILTERS", "CHANNELS"),
        "input_gradient": ("PIXELS", "CHANNELS", "FILTERS"),
        "weight_gradient": ("FILTERS", "TAPS", "PIXELS"),
    }[name]
    tiles = convolution.WEIGHT_TILES if name == "weight_gradient" else convolution.TILES
    tile = tiles[4 if dtype == "fp32" else 2]
    bias = {} if name == "input_gradient" else {"BIAS": True}
    return getattr(convolution, f"_{name}_kernel"), {"R": 5, "S": 5, **dict(zip(sides, tile, strict=True)), **bias}


@pytest.mark.parametrize(("arch", "dtype", "index", "precision"), VARIANTS)
@pytest.mark.parametrize("name", ["forward", "input_gradient", "weight_gradient"])
def test_convolution(name, arch, dtype, index, precision):
    import triton.language as tl

    from lightconv.kernels.convolution import OPTIONS

    kernel, constants = convolution_kernel(name, dtype)
    constants |= {"INDEX": getattr(tl, index), "PRECISION": precision}
    pointers = dict.fromkeys(("x", "w", "b", "y", "g", "dx", "dw", "db"))
    registers, stack, sass = resources(compile_kernel(kernel, pointers, constants, arch, dtype, OPTIONS))
    assert stack == 0, f"{stack} bytes spilled at {registers} registers"
    multiplies = bool(re.search(MATRIX_INSTRUCTION.get(arch, "HMMA"), sass))
    assert multiplies == (precision == "tf32"), "no matrix instruction, or one where full precision was asked for"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_max_pooling(arch, dtype, channels_last):
    import triton.language as tl

    from lightconv.kernels import max_pooling

    constants = {"R": 3, "S": 3, "CHANNELS_LAST": channels_last, "INDEX": tl.int32, "BLOCK": 1024}
    pointers = {"x": None, "y": None, "g": None, "dx": None, "index": "i64"}
    for kernel in (max_pooling._forward_kernel, max_pooling._backward_kernel):
        _, stack, _ = resources(compile_kernel(kernel, pointers, constants, arch, dtype, {"num_warps": 4}))
        assert stack == 0, f"{stack} bytes spilled"
