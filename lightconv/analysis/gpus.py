"""What GPUs can do, by their data sheets, and how many blocks of a kernel fit on one of their multiprocessors."""

from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """What the blocks on one multiprocessor share.

    Attributes:
        warps: resident at most.
        blocks: resident at most.
        shared: bytes of shared memory.
        block_shared: bytes that one block may have.
        reserved: bytes of shared memory that each block costs besides its own.
        schedulers: each issues one instruction a cycle.
        registers: for each scheduler's lane: a thread's registers come out of so many.
        lanes: threads of a warp.
    """

    warps: int
    blocks: int
    shared: int
    block_shared: int
    reserved: int
    schedulers: int
    registers: int
    lanes: int


def _nvidia(warps: int, blocks: int, shared: int) -> Multiprocessor:
    return Multiprocessor(warps, blocks, shared * 1024, (shared - 1) * 1024, 1024, 4, 512, 32)


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD Instinct MI300 ISA guide
MULTIPROCESSOR = {
    "sm_80": _nvidia(64, 32, 164),
    "sm_86": _nvidia(48, 16, 100),
    "sm_89": _nvidia(48, 24, 100),
    "sm_90": _nvidia(64, 32, 228),
    "sm_100": _nvidia(64, 32, 228),
    "sm_120": _nvidia(48, 24, 100),
    "gfx942": Multiprocessor(32, 32, 64 * 1024, 64 * 1024, 0, 4, 512, 64),
}
_REGISTERS_AT_ONCE = 8  # registers of a thread are given out in such pieces


def blocks_at_once(architecture: str, warps: int, registers: int, shared: int) -> int:
    """How many blocks a multiprocessor holds at a time; 0 if not one fits.

    Args:
        architecture: one of `MULTIPROCESSOR`.
        warps: of a block.
        registers: of a thread.
        shared: bytes of a block.
    """
    unit = MULTIPROCESSOR[architecture]
    if shared > unit.block_shared:
        return 0
    each = -(-max(registers, 1) // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = unit.registers // each * unit.schedulers // warps
    by_shared = unit.shared // (shared + unit.reserved) if shared + unit.reserved else unit.blocks
    return min(unit.blocks, unit.warps // warps, by_registers, by_shared)


def occupancy(architecture: str, warps: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that are resident."""
    blocks = blocks_at_once(architecture, warps, registers, shared)
    return blocks * warps / MULTIPROCESSOR[architecture].warps


class GPU(NamedTuple):
    """A GPU's data sheet.

    Attributes:
        name: as it is sold.
        architecture: of its kernels.
        multiprocessors: of them.
        clock: hertz, boosted.
        bandwidth: of its memory, bytes a second.
        half: multiplications and additions a second in float16 and bfloat16 on matrix units, dense, summed in float32.
        tf32: the same in TF32.
        float32: the same on plain units.
    """

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    bandwidth: float
    half: float
    tf32: float
    float32: float

    def peak(self, kind: str) -> float:
        """Multiplications and additions a second of "half", "tf32" or "ieee"."""
        return {"half": self.half, "tf32": self.tf32, "ieee": self.float32}[kind]


def _gpu(
    name: str,
    architecture: str,
    multiprocessors: int,
    megahertz: float,
    gigabytes: float,
    half: float,
    tf32: float,
    float32: float,
) -> GPU:
    rates = (rate * 1e12 for rate in (half, tf32, float32))
    return GPU(name, architecture, multiprocessors, megahertz * 1e6, gigabytes * 1e9, *rates)


# NVIDIA's data sheets and architecture white papers. GeForce cards sum float16 products in float32 at half the rate
# that they sum them in float16; data sheets that print rates "with sparsity" are halved.
GPUS = {
    "a100": _gpu("A100 SXM 80GB", "sm_80", 108, 1410, 2039, 312, 156, 19.5),
    "h100": _gpu("H100 SXM 80GB", "sm_90", 132, 1830, 3350, 989.4, 494.7, 66.9),
    "h200": _gpu("H200 SXM", "sm_90", 132, 1830, 4800, 989.4, 494.7, 66.9),
    "l40s": _gpu("L40S", "sm_89", 142, 2520, 864, 362.1, 183.0, 91.6),
    "rtx4090": _gpu("GeForce RTX 4090", "sm_89", 128, 2520, 1008, 165.2, 82.6, 82.6),
    "rtx5090": _gpu("GeForce RTX 5090", "sm_120", 170, 2407, 1792, 209.5, 104.8, 104.8),
    "b200": _gpu("B200 (HGX)", "sm_100", 148, 1965, 7700, 2250, 1100, 75),
}
# as torch.cuda.get_device_name has them; other models of the same chip have other clocks and memories
_TORCH_NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "NVIDIA B200": "b200",
}
UNSUPPORTED = {"t4": "T4 is sm_75: Triton's float16 product spills there, and torch serves GPUs before Ampere"}


def named(name: str) -> GPU | None:
    """The data sheet of the GPU that torch gives this name; None if it is not listed."""
    return GPUS.get(_TORCH_NAMES.get(name, ""))
