"""Compile what a launcher would launch for a GPU that need not be there, and say whether the machine code is sound.

Only where kernels are not interpreted.
"""

import re
from collections.abc import Callable
from typing import Any

from lightconv.analysis.compilation import Compiled, compiled, index_bits, recorded
from lightconv.analysis.machine_code import count, load_bits

SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}  # KiB
MATRIX_INSTRUCTION = {"sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA", "gfx942": "v_mfma"}  # HMMA elsewhere
DESCRIBED = {"sm_90", "sm_100", "sm_120"}

# Other instructions of the main loop for each matrix instruction, with the largest tile of a table, at most: what is
# compiled today and 15 %. A step must load both operands (by tensor memory access a few instructions, by pointers loads
# and their next addresses), read them from shared memory, wait at a barrier or two, and count. Warp groups (sm_90,
# sm_100) take all of that for one instruction, which multiplies as much as 16 to 64 of a warp. More is taken by
# addresses that are clamped or have 64 bits, by channels not side by side, by bytes to expand and taps to divide.
DRAGGED = {
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


def compile_launches(launcher: Callable[..., Any], *args: Any, architecture: str, **kwargs: Any) -> list[Compiled]:
    """Compile every kernel that `launcher(*args, **kwargs)` starts, in order, launching none."""
    with recorded(architecture) as launches:
        launcher(*args, **kwargs)
    return compiled(launches)


def assert_sound(kernel: Compiled, name: str, architecture: str, kind: str, largest: bool = True) -> None:
    """What must hold of a product's kernel.

    Args:
        kernel: compiled.
        name: of the call, a key of `DRAGGED`.
        architecture: compiled for.
        kind: "half", "tf32" or "ieee".
        largest: whether its tile is the largest of its table.
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
    if name == "fused" and architecture in DESCRIBED:
        assert "UTMALDG" in kernel.machine_code, "no tensor memory access"
    _assert_lean(kernel, name, architecture, kind, largest)


def _assert_lean(kernel: Compiled, name: str, architecture: str, kind: str, largest: bool) -> None:
    loop, counted = kernel.loop, count(kernel.loop)
    if "flattened" in name and not counted["matrix"]:  # a few steps, written out
        return
    assert counted["matrix"], "no matrix instruction in the main loop"
    if name in {"fused", "weights"} and architecture == "sm_80":
        assert min(load_bits(loop)) >= 64, f"loads of single elements: {load_bits(loop)} bits"
    of_64_bits = "far" in name and architecture.startswith("gfx")  # whose products take the same instruction
    if "flattened" not in name and not of_64_bits:  # where each column's tap is found by dividing, by constants
        assert counted["division"] == 0, f"{counted['division']} steps of an integer division in the main loop"
    dragged = (len(loop) - counted["matrix"]) / counted["matrix"]
    limit = DRAGGED[name][_COLUMN.get(architecture, _WARPS)[kind]]
    assert not largest or dragged <= limit, f"{dragged:.1f} other instructions for each matrix instruction, not {limit}"


def assert_neighbours_are_read_at_once(kernel: Compiled, dtype: str) -> None:
    """Of a max-pooling in channels_last: values 16 bytes at a time, and as many bytes or indices as go with them."""
    loads = set(re.findall(r"LDG\.E\S*", kernel.machine_code))
    neighbours = {"LDG.E.128", "LDG.E.64"} if dtype == "float16" else {"LDG.E.128", "LDG.E"}
    assert loads <= neighbours, f"{kernel.name}: channels are not read 16 bytes at a time"
    assert "LDG.E.128" in loads
