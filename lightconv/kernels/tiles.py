"""Tiles: how much of a product one block computes, and the rule that chooses among an algorithm's few.

Every algorithm lists its tiles by architecture and by how numbers are multiplied, from the largest to the smallest;
`lightconv.kernels.tiles.choose` takes one from the shape of the product alone: the same call has the same bits on every
machine of that architecture, unless ``lightconv tune`` measured it there (`lightconv.kernels.autotune`). Every tile of
every table is compiled by the tests.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton

# multiprocessors of the largest GPU of each architecture: A100, A40, RTX 4090, H100, B200, RTX 5090, MI300X
MULTIPROCESSORS = {
    "sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304,
}  # fmt: skip
ARCHITECTURES = tuple(MULTIPROCESSORS)


class Tile(NamedTuple):
    """What one block computes: rows x columns of the product, depth terms at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.warps} warps"

    def options(self, architecture: str) -> dict[str, Any]:
        """The launch options that go with it."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        # left alone, ptxas spills a few registers to fit a second block
        return options | at_most_registers(255, architecture)


def at_most_registers(registers: int, architecture: str) -> dict[str, int]:
    """The launch option that lets a thread use so many, for compilers that know it: AMD's does not."""
    return {} if architecture.startswith("gfx") else {"maxnreg": registers}


Tiles = tuple[Tile, ...]
Table = Mapping[str, Mapping[str, Tiles]]  # architecture -> "half", "tf32" or "ieee" -> from large to small


def arithmetic(dtype: torch.dtype, precision: str) -> str:
    """How numbers are multiplied: "half" and "tf32" by matrix instructions, "ieee" by plain ones."""
    return "half" if dtype in {torch.float16, torch.bfloat16} else precision


def nearest(architecture: str) -> str:
    """The listed architecture whose tiles serve a GPU: its own, else the newest older one of its maker."""
    if architecture in MULTIPROCESSORS or architecture.startswith("gfx"):
        return architecture if architecture in MULTIPROCESSORS else "gfx942"
    number = int(architecture.removeprefix("sm_"))
    older = [a for a in ARCHITECTURES if a.startswith("sm_") and int(a.removeprefix("sm_")) <= number]
    return older[-1] if older else ARCHITECTURES[0]


def fitting(tiles: Sequence[Tile], rows: int, columns: int) -> list[Tile]:
    """The tiles that are no larger than the product, or the smallest where all are, from large to small."""
    fits = [t for t in tiles if _at_most(t.rows, rows) and _at_most(t.columns, columns)]
    return fits or [t for t in tiles if _at_most(t.columns, columns)][-1:] or [tiles[-1]]


def _at_most(side: int, size: int) -> bool:
    return side <= triton.next_power_of_2(size)


def choose(tiles: Sequence[Tile], architecture: str, rows: int, columns: int, products: int = 1) -> Tile:
    """The largest tile that is no larger than the product and still gives every multiprocessor a block.

    Args:
        tiles: of one algorithm, from the largest to the smallest.
        architecture: one of `ARCHITECTURES`.
        rows: of the product.
        columns: of the product.
        products: how many such products one launch computes.

    Returns:
        A tile of the list; the one that makes the most blocks where none gives every multiprocessor one.
    """
    candidates = fitting(tiles, rows, columns)
    for tile in candidates:
        blocks = products * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        if blocks >= MULTIPROCESSORS[architecture]:
            return tile
    return candidates[-1]
