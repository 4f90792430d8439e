"""Data sheets of GPUs, and the number of blocks of a kernel that fit on one of their multiprocessors."""

from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """Resources that the resident blocks of one multiprocessor share.

    Attributes:
        warps: largest number of resident warps.
        blocks: largest number of resident blocks.
        shared: shared memory, in bytes.
        block_shared: largest shared memory of one block, in bytes.
        reserved: shared memory that the system takes per resident block, in bytes.
        schedulers: warp schedulers; each issues one instruction per cycle.
        registers: registers per lane of one scheduler, divided among its resident warps.
        lanes: threads per warp.
    """

    warps: int
    blocks: int
    shared: int
    block_shared: int
    reserved: int
    schedulers: int
    registers: int
    lanes: int


def _nvidia(warps: int, blocks: int, shared_kib: int) -> Multiprocessor:
    return Multiprocessor(
        warps=warps,
        blocks=blocks,
        shared=shared_kib * 1024,
        block_shared=(shared_kib - 1) * 1024,
        reserved=1024,
        schedulers=4,
        registers=512,
        lanes=32,
    )


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD Instinct MI300 ISA guide
MULTIPROCESSOR = {
    "sm_80": _nvidia(64, 32, 164),
    "sm_86": _nvidia(48, 16, 100),
    "sm_89": _nvidia(48, 24, 100),
    "sm_90": _nvidia(64, 32, 228),
    "sm_100": _nvidia(64, 32, 228),
    "sm_120": _nvidia(48, 24, 100),
    "gfx942": Multiprocessor(
        warps=32,
        blocks=32,
        shared=64 * 1024,
        block_shared=64 * 1024,
        reserved=0,
        schedulers=4,
        registers=512,
        lanes=64,
    ),
}
_REGISTER_UNIT = 8  # the hardware allocates a thread's registers in multiples of 8


def blocks_at_once(architecture: str, warps: int, registers: int, shared: int) -> int:
    """Return how many blocks of a kernel are resident on a multiprocessor at a time.

    Args:
        architecture: a key of `MULTIPROCESSOR`.
        warps: warps per block.
        registers: registers per thread.
        shared: shared memory per block, in bytes.

    Returns:
        The number of blocks; 0 if a single block does not fit.

    Example:
        >>> blocks_at_once("sm_80", warps=4, registers=168, shared=0)
        3
    """
    unit = MULTIPROCESSOR[architecture]
    if shared > unit.block_shared:
        return 0
    allocated = -(-max(registers, 1) // _REGISTER_UNIT) * _REGISTER_UNIT
    limits = [
        unit.blocks,
        unit.warps // warps,
        unit.registers // allocated * unit.schedulers // warps,
    ]
    shared_per_block = shared + unit.reserved
    if shared_per_block:
        limits.append(unit.shared // shared_per_block)
    return min(limits)


def occupancy(architecture: str, warps: int, registers: int, shared: int) -> float:
    """Return the share of a multiprocessor's warps that are resident, from 0 to 1.

    Args:
        architecture: a key of `MULTIPROCESSOR`.
        warps: warps per block.
        registers: registers per thread.
        shared: shared memory per block, in bytes.
    """
    blocks = blocks_at_once(architecture, warps, registers, shared)
    return blocks * warps / MULTIPROCESSOR[architecture].warps


class GPU(NamedTuple):
    """Data sheet of a GPU.

    One fused multiply-add counts as two operations.

    Attributes:
        name: product name.
        architecture: compiler's name of the architecture, such as "sm_90".
        multiprocessors: number of multiprocessors.
        clock: boost clock, in hertz.
        bandwidth: memory bandwidth, in bytes per second.
        half: dense float16 or bfloat16 rate of the matrix units with float32 sums, in operations per second.
        tf32: dense TF32 rate of the matrix units, in operations per second.
        float32: float32 rate of the plain units, in operations per second.
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
        """Return the rate of one kind of arithmetic, in operations per second.

        Args:
            kind: "half" or "tf32" on matrix units, "ieee" on plain units.
        """
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
    """Build a data sheet from its printed units: MHz, GB per second, and TFLOPS for the three rates."""
    return GPU(
        name=name,
        architecture=architecture,
        multiprocessors=multiprocessors,
        clock=megahertz * 1e6,
        bandwidth=gigabytes * 1e9,
        half=half * 1e12,
        tf32=tf32 * 1e12,
        float32=float32 * 1e12,
    )


# NVIDIA's data sheets and architecture white papers. GeForce cards sum float16 products in float32 at half the rate of
# sums in float16. Rates printed "with sparsity" are halved.
GPUS = {
    "a100": _gpu("A100 SXM 80GB", "sm_80", 108, 1410, 2039, 312, 156, 19.5),
    "h100": _gpu("H100 SXM 80GB", "sm_90", 132, 1830, 3350, 989.4, 494.7, 66.9),
    "h200": _gpu("H200 SXM", "sm_90", 132, 1830, 4800, 989.4, 494.7, 66.9),
    "l40s": _gpu("L40S", "sm_89", 142, 2520, 864, 362.1, 183.0, 91.6),
    "rtx4090": _gpu("GeForce RTX 4090", "sm_89", 128, 2520, 1008, 165.2, 82.6, 82.6),
    "rtx5090": _gpu("GeForce RTX 5090", "sm_120", 170, 2407, 1792, 209.5, 104.8, 104.8),
    "b200": _gpu("B200 (HGX)", "sm_100", 148, 1965, 7700, 2250, 1100, 75),
}
# Names returned by torch.cuda.get_device_name. Other models of the same chip are left out: they have other clocks and
# memories.
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


def find_gpu(torch_name: str) -> GPU | None:
    """Return the data sheet of a GPU by the name that torch reports; None if it is not listed.

    Args:
        torch_name: result of ``torch.cuda.get_device_name``.

    Example:
        >>> find_gpu("NVIDIA H200").bandwidth
        4800000000000.0
        >>> find_gpu("NVIDIA H100 PCIe") is None
        True
    """
    return GPUS.get(_TORCH_NAMES.get(torch_name, ""))
