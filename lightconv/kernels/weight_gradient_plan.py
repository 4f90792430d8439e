"""Tile tables and plans of `lightconv.kernels.weight_gradient`: from sizes to tile, rectangle and number of parts.

In this product rows are filters, columns are the channels of a tap, and depth is pixels. A plan follows from the sizes
alone, so the same call has the same bits on every machine of an architecture, unless ``lightconv tune`` measured
another one there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import triton

from lightconv.kernels.implicit_gemm_plan import CAREFUL_TILES, FLATTENED_BELOW
from lightconv.kernels.tiles import ARCHITECTURES, MULTIPROCESSORS, Kind, Table, Tile, Tiles, fitting_tiles
from lightconv.kernels.window import Pair

_MMA: dict[Kind, Tiles] = {
    "half": (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(64, 32, 32, 4, 3)),
    "tf32": (Tile(64, 64, 32, 8, 2), Tile(64, 32, 32, 4, 2)),
    "ieee": (Tile(64, 32, 16, 8, 2),),
}
# Twice the depth: warp groups do not share a step's addresses, which then serve twice the products.
_WGMMA: dict[Kind, Tiles] = _MMA | {
    "half": (Tile(128, 128, 64, 8, 2), Tile(64, 64, 64, 4, 3), Tile(64, 32, 64, 4, 3)),
}
# AMD's GPUs have no TF32 here
_MFMA: dict[Kind, Tiles] = {"half": _MMA["half"], "ieee": _MMA["ieee"]}
TILES: Table = {
    "sm_80": _MMA, "sm_86": _MMA, "sm_89": _MMA, "sm_90": _WGMMA, "sm_100": _WGMMA, "sm_120": _MMA, "gfx942": _MFMA,
}  # fmt: skip

# Flattened: every column has a tap of its own, whose coordinates take registers.
_FLATTENED: dict[Kind, Tiles] = {
    "half": (Tile(64, 32, 32, 4, 1),),
    "tf32": (Tile(64, 32, 32, 4, 1),),
    "ieee": (Tile(64, 32, 16, 8, 1),),
}
_FLATTENED_MFMA: dict[Kind, Tiles] = {"half": (Tile(64, 32, 16, 8, 1),), "ieee": _FLATTENED["ieee"]}
FLATTENED_TILES: Table = dict.fromkeys(ARCHITECTURES, _FLATTENED) | {"gfx942": _FLATTENED_MFMA}

_STEPS_PER_ROW = 4  # rectangles along a row of the map, if it is that wide: loads of the next run ahead
_BLOCKS_PER_MULTIPROCESSOR = 2


class Plan(NamedTuple):
    """Division of a weight gradient's product into blocks.

    Attributes:
        tile: filters, channels (flattened: channels and taps) and pixels of a block's step.
        flattened: True if taps and channels share the columns of the product.
        patch_w: width of the rectangle of pixels that a step takes.
        blocks: blocks along columns, filters and groups.
        units: rows of rectangles per part of the sum.
        splits: parts of the sum.
    """

    tile: Tile
    flattened: bool
    patch_w: int
    blocks: tuple[int, int, int]
    units: int
    splits: int


def build_plan(
    images: int,
    size: Pair,
    weight_shape: Sequence[int],
    groups: int,
    architecture: str,
    kind: Kind,
    *,
    careful: bool = False,
    tile: Tile | None = None,
) -> Plan:
    """Choose tile, rectangle and number of parts by rule, from the sizes alone.

    Args:
        images: images of the batch.
        size: height and width of the convolution's map.
        weight_shape: filters, channels per group, height and width of the filter.
        groups: groups of channels and filters.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        careful: True if offsets need 64 bits or channels are not neighbours in memory.
        tile: tile to use instead of the table's.
    """
    filters, channels, r, s = weight_shape
    filters //= groups
    flattened = channels < FLATTENED_BELOW
    columns = channels
    if flattened:
        columns *= r * s
    if tile is None:
        tile = _rule_tile(filters, columns, architecture, kind, flattened=flattened, careful=careful)

    column_blocks = triton.cdiv(columns, tile.columns)
    if not flattened:
        column_blocks *= r * s
    blocks = (column_blocks, triton.cdiv(filters, tile.rows), groups)

    patch_w = _patch_width(size, tile)
    rows = images * triton.cdiv(size[0], tile.depth // patch_w)
    pixels_per_term = images * math.prod(size) // (r * s * min(filters, channels))
    parts = min(rows, count_splits(math.prod(blocks), pixels_per_term, architecture))
    units = triton.cdiv(rows, max(1, parts))
    return Plan(tile, flattened, patch_w, blocks, units, splits=triton.cdiv(rows, units))


def candidate_plans(
    images: int,
    size: Pair,
    weight_shape: Sequence[int],
    groups: int,
    architecture: str,
    kind: Kind,
    *,
    careful: bool = False,
) -> tuple[Plan, ...]:
    """Return every plan whose tile is in the tables for such a product, the rule's first.

    The arguments are those of `build_plan`.
    """
    filters, channels = weight_shape[0] // groups, weight_shape[1]
    tiles: list[Tile | None] = [None]  # the rule's
    if channels < FLATTENED_BELOW and not careful:
        tiles += FLATTENED_TILES[architecture][kind]
    else:
        if not careful:
            tiles += [tile for tile in TILES[architecture][kind] if _fills(tile, filters, channels)]
        tiles += CAREFUL_TILES[architecture][kind]
    plans = [
        build_plan(images, size, weight_shape, groups, architecture, kind, careful=careful, tile=tile) for tile in tiles
    ]
    return tuple(dict.fromkeys(plans))  # each once, in order


def count_splits(blocks: int, pixels_per_term: int, architecture: str) -> int:
    """Return the number of parts of the sum: enough for two blocks per multiprocessor, unless that does not pay.

    Args:
        blocks: blocks per part.
        pixels_per_term: elements of the operands read per element of the result. More parts than that would take
            longer to write than the operands to read.
        architecture: one of `tiles.ARCHITECTURES`.
    """
    wanted = triton.cdiv(_BLOCKS_PER_MULTIPROCESSOR * MULTIPROCESSORS[architecture], blocks)
    return min(wanted, pixels_per_term)


def _rule_tile(filters: int, columns: int, architecture: str, kind: Kind, *, flattened: bool, careful: bool) -> Tile:
    """Choose the largest tile that fits: parts of the sum fill the GPU, however large the tile is."""
    table = FLATTENED_TILES if flattened else TILES
    if careful:
        table = CAREFUL_TILES
    tile = fitting_tiles(table[architecture][kind], filters, columns)[0]
    if flattened or _fills(tile, filters, columns):
        return tile
    return fitting_tiles(CAREFUL_TILES[architecture][kind], filters, columns)[0]


def _fills(tile: Tile, filters: int, columns: int) -> bool:
    """Return True if every block of a tile is full."""
    return filters % tile.rows == 0 and columns % tile.columns == 0


def _patch_width(size: Pair, tile: Tile) -> int:
    """Return the width of the rectangle of `tile.depth` pixels with the least overhang over the map.

    Of equals it is the one with the most steps per row, up to `_STEPS_PER_ROW`, and of these the widest, which reads
    memory in its order.
    """
    most_steps = _STEPS_PER_ROW if tile.stages > 1 else 1  # without stages no load runs ahead
    ranks = {}
    for shift in range(tile.depth.bit_length()):
        width = 1 << shift
        height = tile.depth // width
        covered = triton.cdiv(size[0], height) * height * triton.cdiv(size[1], width) * width
        steps = min(triton.cdiv(size[1], width), most_steps)
        ranks[width] = (covered, -steps, -width)
    return min(ranks, key=ranks.__getitem__)
