"""Compile the kernels of a launcher for a GPU that need not be present, and check the machine code.

Only in a process that does not interpret kernels.
"""

import re
from collections.abc import Callable
from typing import Any

from lightconv.analysis.compilation import CompiledKernel, compile_kernels, index_bits, record_launches
from lightconv.analysis.machine_code import count, load_bits

SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}  # KiB
MATRIX_INSTRUCTION = {"sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA", "gfx942": "v_mfma"}  # HMMA elsewhere
DESCRIPTOR_ARCHITECTURES = {"sm_90", "sm_100", "sm_120"}

# Largest number of other instructions per matrix instruction in the main loop, with the largest tile of a table: the
# number compiled today and 15 %. A step must load both operands (a few instructions with tensor memory access; loads
# and their next addresses with pointers), read them from shared memory, wait at a barrier or two, and count. On sm_90
# and sm_100 a warp group does all of that for one instruction, which multiplies as much as 16 to 64 of a warp. Clamped
# or 64-bit addresses, channels that do not lie side by side, bytes to expand and taps to divide take more.
LARGEST_RATIO = {
    #                                warps: half, tf32; warp groups: half, tf32; AMD: half
    "fused": (2.6, 2.9, 31, 32, 7.0),
    "fused, many filters": (3.2, 3.0, 31, 32, 7.2),
    "fused, 3x3": (2.5, 2.8, 32, 30, 7.0),
    "plain, strided": (2.5, 2.8, 32, 30, 7.0),
    "plain, strided, uneven": (14, 4.9, 76, 41, 13),
    "plain, contiguous": (26, 16, 118, 82, 36),
    "fused, few": (26, 16, 118, 82, 32),
    "fused, far": (26, 16, 102, 60, 39),
    "fused, flattened": (35, 19, 290, 141, 58),
    "fused, flattened, one step": (35, 19, 290, 141, 58),
    "fused, flattened, contiguous": (42, 22, 346, 167, 59),
    "flattened, far": (100, 51, 483, 240, 78),
    "gradient": (2.7, 3.8, 32, 33, 11),
    "gradient, strided": (3.1, 3.8, 32, 39, 11),
    "gradient, far": (15, 9.1, 106, 60, 22),
    "gradient, expanded": (26, 16, 120, 66, 31),
    "gradient, expanded, far": (30, 17, 143, 73, 36),
    "weights": (4.6, 9.3, 31, 47, 18),
    "weights, uneven": (22, 18, 97, 91, 29),
    "weights, far": (31, 24, 122, 120, 34),
    "weights, flattened": (32, 21, 86, 79, 30),
    "weights, flattened, far": (24, 29, 144, 166, 40),
}
_WARPS, _WARP_GROUPS, _AMD = {"half": 0, "tf32": 1}, {"half": 2, "tf32": 3}, {"half": 4}
_COLUMN = {"sm_90": _WARP_GROUPS, "sm_100": _WARP_GROUPS, "gfx942": _AMD}


def compile_launches(
    launcher: Callable[..., Any], *args: Any, architecture: str, **kwargs: Any
) -> list[CompiledKernel]:
    """Compile every kernel that `launcher(*args, **kwargs)` starts, in order, without launching any."""
    with record_launches(architecture) as launches:
        launcher(*args, **kwargs)
    return compile_kernels(launches)


def assert_sound(kernel: CompiledKernel, name: str, architecture: str, kind: str, largest: bool = True) -> None:
    """Check a matrix product's kernel.

    Args:
        kernel: compiled kernel.
        name: name of the call, a key of `LARGEST_RATIO`.
        architecture: architecture compiled for.
        kind: kind of arithmetic: "half", "tf32" or "ieee".
        largest: True if its tile is the largest of its table.
    """
    assert kernel.spilled == 0, f"{kernel.spilled} bytes spilled at {kernel.registers} registers"
    assert kernel.shared <= SHARED[architecture] * 1024
    assert index_bits(kernel) == (64 if "far" in name else 32)
    multiplies = re.search(MATRIX_INSTRUCTION.get(architecture, "HMMA"), kernel.machine_code)
    if kind == "ieee":
        assert not architecture.startswith("sm_") or not multiplies, "a matrix instruction in full precision"
        return
    assert multiplies, "no matrix instruction"
    assert len(re.findall("FFMA", kernel.machine_code)) < 32, "products without matrix instructions"
    if name == "fused" and architecture in DESCRIPTOR_ARCHITECTURES:
        assert "UTMALDG" in kernel.machine_code, "no tensor memory access"
    _assert_lean(kernel, name, architecture, kind, largest)


def _assert_lean(kernel: CompiledKernel, name: str, architecture: str, kind: str, largest: bool) -> None:
    loop = kernel.loop
    counted = count(loop)
    if "flattened" in name and not counted["matrix"]:
        # the compiler unrolled a loop of a few steps
        return
    assert counted["matrix"], "no matrix instruction in the main loop"
    if name in {"fused", "weights"} and architecture == "sm_80":
        assert min(load_bits(loop)) >= 64, f"loads of single elements: {load_bits(loop)} bits"
    # flattened: each column's tap is found by a division by constants; AMD: a 64-bit product is the same instruction
    has_high_products = "flattened" in name or ("far" in name and architecture.startswith("gfx"))
    if not has_high_products:
        assert counted["division"] == 0, f"{counted['division']} steps of an integer division in the main loop"
    ratio = (len(loop) - counted["matrix"]) / counted["matrix"]
    limit = LARGEST_RATIO[name][_COLUMN.get(architecture, _WARPS)[kind]]
    assert not largest or ratio <= limit, f"{ratio:.1f} other instructions per matrix instruction, not {limit}"


def assert_neighbours_are_read_at_once(kernel: CompiledKernel, dtype: str) -> None:
    """Check a max-pooling in channels_last: values are read 16 bytes at a time, with their positions or indices."""
    loads = set(re.findall(r"LDG\.E\S*", kernel.machine_code))
    neighbours = {"LDG.E.128", "LDG.E.64"} if dtype == "float16" else {"LDG.E.128", "LDG.E"}
    assert loads <= neighbours, f"{kernel.name}: channels are not read 16 bytes at a time"
    assert "LDG.E.128" in loads
