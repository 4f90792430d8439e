"""Tiles: the part of a product that one block computes, and the rule that chooses among the tiles of a table.

A table lists an algorithm's tiles per architecture and kind of arithmetic, from the largest to the smallest.
`choose_tile` depends on the shape of the product alone, so a call has the same bits on every machine of an
architecture. Only an answer of ``lightconv tune`` replaces the rule's tile (`lightconv.kernels.autotune`). The tests
compile every tile of every table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import triton

# multiprocessors of the largest GPU per architecture: A100, A40, RTX 4090, H100, B200, RTX 5090, MI300X
MULTIPROCESSORS = {
    "sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304,
}  # fmt: skip
ARCHITECTURES = tuple(MULTIPROCESSORS)

_MOST_REGISTERS = 255  # per thread, on NVIDIA's GPUs

Kind = Literal["half", "tf32", "ieee"]
"""Arithmetic of a product: "half" and "tf32" use matrix instructions, "ieee" plain float32 ones."""


class Tile(NamedTuple):
    """Part of a matrix product that one block computes, and the resources of the block.

    Attributes:
        rows: rows of the product.
        columns: columns of the product.
        depth: terms of each sum per step of the main loop.
        warps: warps of the block.
        stages: steps in flight: loads run ``stages - 1`` steps ahead.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.warps} warps"

    def options(self, architecture: str) -> dict[str, Any]:
        """Return Triton's launch options for this tile."""
        # Hazard: left alone, ptxas spills 8 to 48 bytes of a thread on purpose, to fit a second block of 8 warps on a
        # multiprocessor. Every tile of the tables needs no spills if a thread may use all registers.
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
            **register_limit(_MOST_REGISTERS, architecture),
        }


def register_limit(registers: int, architecture: str) -> dict[str, int]:
    """Return the launch option for the most registers per thread. AMD's compiler has no such option."""
    if architecture.startswith("gfx"):
        return {}
    return {"maxnreg": registers}


Tiles = tuple[Tile, ...]
Table = Mapping[str, Mapping[Kind, Tiles]]  # architecture -> kind -> tiles, from large to small


def arithmetic(dtype: torch.dtype, precision: Literal["tf32", "ieee"]) -> Kind:
    """Return the kind of arithmetic that multiplies tensors of a dtype, float32 in the given precision."""
    if dtype in {torch.float16, torch.bfloat16}:
        return "half"
    return precision


def nearest_architecture(architecture: str) -> str:
    """Return the listed architecture whose tiles serve a GPU: its own, else the newest older one of its maker."""
    if architecture in MULTIPROCESSORS:
        return architecture
    if architecture.startswith("gfx"):
        return "gfx942"
    number = int(architecture.removeprefix("sm_"))
    nearest = ARCHITECTURES[0]
    for listed in ARCHITECTURES:  # NVIDIA's from the oldest to the newest
        if listed.startswith("sm_") and int(listed.removeprefix("sm_")) <= number:
            nearest = listed
    return nearest


def fitting_tiles(tiles: Sequence[Tile], rows: int, columns: int) -> list[Tile]:
    """Return the tiles no larger than the product, from large to small; the smallest one if all are larger."""
    narrow = [tile for tile in tiles if tile.columns <= triton.next_power_of_2(columns)]
    fitting = [tile for tile in narrow if tile.rows <= triton.next_power_of_2(rows)]
    # all are too tall: columns decide, because filters not filled are computed in vain by every block
    return fitting or narrow[-1:] or [tiles[-1]]


def choose_tile(tiles: Sequence[Tile], architecture: str, rows: int, columns: int, products: int = 1) -> Tile:
    """Return the largest tile no larger than the product that still gives every multiprocessor a block.

    Args:
        tiles: tiles of one algorithm, from the largest to the smallest.
        architecture: one of `ARCHITECTURES`.
        rows: rows of the product.
        columns: columns of the product.
        products: number of such products per launch.

    Returns:
        One of the tiles. If none gives every multiprocessor a block, it is the one with the most blocks.
    """
    candidates = fitting_tiles(tiles, rows, columns)
    for tile in candidates:
        blocks = products * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        if blocks >= MULTIPROCESSORS[architecture]:
            return tile
    return candidates[-1]
