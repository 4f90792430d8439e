"""Tile tables and plans of `lightconv.kernels.implicit_gemm`: from the sizes of a product to tile and loader.

A plan follows from the sizes alone, so the same call has the same bits on every machine of an architecture, unless
``lightconv tune`` measured another one there.
"""

import math
from typing import Literal, NamedTuple

import triton
from torch import Tensor

from lightconv.kernels import autotune
from lightconv.kernels.tiles import ARCHITECTURES, Kind, Table, Tile, Tiles, choose_tile
from lightconv.kernels.window import Pair, Window

_MMA: dict[Kind, Tiles] = {
    "half": (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 32, 32, 4, 3), Tile(64, 16, 32, 4, 3)),
    "tf32": (Tile(128, 64, 32, 8, 3), Tile(64, 32, 32, 4, 3), Tile(64, 16, 32, 4, 3)),
    "ieee": (Tile(64, 32, 16, 8, 2), Tile(64, 16, 16, 4, 2)),
}
_WGMMA: dict[Kind, Tiles] = _MMA | {
    "half": (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(64, 32, 64, 4, 3), Tile(64, 16, 32, 4, 3)),
}
# AMD's GPUs have no TF32 here
_MFMA: dict[Kind, Tiles] = {"half": _MMA["half"], "ieee": _MMA["ieee"]}
TILES: Table = {
    "sm_80": _MMA, "sm_86": _MMA, "sm_89": _MMA, "sm_90": _WGMMA, "sm_100": _WGMMA, "sm_120": _MMA, "gfx942": _MFMA,
}  # fmt: skip

# Flattened: every column of the matrix of patches has a tap of its own, whose coordinates take registers.
_FLATTENED: dict[Kind, Tiles] = {
    "half": (Tile(128, 64, 32, 8, 1), Tile(64, 32, 32, 4, 1), Tile(64, 16, 32, 4, 1)),
    "tf32": (Tile(128, 64, 32, 8, 1), Tile(64, 32, 32, 4, 1), Tile(64, 16, 32, 4, 1)),
    "ieee": (Tile(64, 32, 16, 8, 1), Tile(64, 16, 16, 4, 1)),
}
_FLATTENED_MFMA: dict[Kind, Tiles] = {
    "half": (Tile(64, 32, 16, 8, 1), Tile(64, 16, 16, 4, 1)),
    "ieee": _FLATTENED["ieee"],
}
FLATTENED_TILES: Table = dict.fromkeys(ARCHITECTURES, _FLATTENED) | {"gfx942": _FLATTENED_MFMA}

# Careful: for heavy addresses, that is 64-bit offsets, channels that are not neighbours in memory, or tiles not filled.
# The smallest tile takes many short steps and keeps the loads of four of them in flight.
_CAREFUL: dict[Kind, Tiles] = {
    "half": (Tile(64, 64, 16, 8, 2), Tile(64, 32, 16, 8, 2), Tile(64, 16, 16, 4, 4)),
    "tf32": (Tile(64, 64, 16, 8, 2), Tile(64, 32, 16, 8, 2), Tile(64, 16, 16, 4, 4)),
    "ieee": (Tile(64, 32, 16, 8, 2),),
}
_CAREFUL_MFMA: dict[Kind, Tiles] = {"half": _CAREFUL["half"][:2], "ieee": _CAREFUL["ieee"]}
CAREFUL_TILES: Table = dict.fromkeys(ARCHITECTURES, _CAREFUL) | {"gfx942": _CAREFUL_MFMA}

FLATTENED_BELOW = 16  # channels: a matrix instruction sums at least as many

_DESCRIPTOR_ARCHITECTURES = {"sm_90", "sm_100", "sm_120"}  # their hardware loads rectangles (TMA)
_ALIGNMENT = 16  # bytes: strides of a described tensor are multiples
_LONGEST_SIDE = 256  # pixels along one side of a rectangle that a descriptor loads
_MOST_OVERHANG = 1.25  # pixels computed with rectangles, per pixel that exists
_NO_PATCH = (0, 0)

Loader = Literal["descriptors", "pointers", "flattened"]


class Plan(NamedTuple):
    """Tile and loader of a product.

    Attributes:
        tile: rows, columns and depth of a block.
        loader: "descriptors", "pointers" or "flattened", explained in `lightconv.kernels.implicit_gemm`.
        patch: height and width, in pooling windows, of the rectangle that descriptors load; (0, 0) for other loaders.
    """

    tile: Tile
    loader: Loader
    patch: Pair


class Product(NamedTuple):
    """Sizes of a convolution's or an input gradient's matrix product: everything its plan depends on.

    Attributes:
        images: images of the batch.
        size: height and width of the output, in pixels of a phase or in pooling windows.
        filters: columns of the product per group: filters, or for a gradient the convolution's channels.
        channels: channels summed per group: channels, or for a gradient the convolution's filters.
        taps: height and width of the filter.
        groups: groups of channels and filters.
        phases: phases of a strided gradient, down and across.
        pool: height and width of the pooling window.
        element_size: bytes of an element.
        dense: True without stride, dilation and un-pooling.
        side_by_side: True if the summed channels are neighbours in memory.
        gradient: True for an input gradient.
    """

    images: int
    size: Pair
    filters: int
    channels: int
    taps: Pair
    groups: int
    phases: Pair
    pool: Pair
    element_size: int
    dense: bool
    side_by_side: bool
    gradient: bool

    @property
    def positions(self) -> int:
        """Rows of the product per pooling window: the next power of two, which a reduction needs."""
        return triton.next_power_of_2(math.prod(self.pool))

    @property
    def is_flattened(self) -> bool:
        """True if taps and channels are summed in one loop."""
        return self.channels < FLATTENED_BELOW and not self.gradient


def forward_product(
    images: Tensor,
    weight: Tensor,
    size: Pair,
    *,
    window: Window,
    groups: int,
    pool: Pair,
) -> Product:
    """Return the product of a convolution.

    Args:
        images: images, (n, c, h, w).
        weight: filters, (k, c, r, s).
        size: height and width of the result, after pooling.
        window: stride, padding and dilation.
        groups: groups of channels and filters.
        pool: height and width of the pooling window.
    """
    return Product(
        images=images.shape[0],
        size=size,
        filters=weight.shape[0] // groups,
        channels=weight.shape[1],
        taps=size_of(weight),
        groups=groups,
        phases=(1, 1),
        pool=pool,
        element_size=images.element_size(),
        dense=window.stride == (1, 1) and window.dilation == (1, 1),
        side_by_side=images.stride(1) == 1,
        gradient=False,
    )


def input_gradient_product(
    grad_input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    *,
    window: Window,
    groups: int,
    pooled: bool,
) -> Product:
    """Return the product of the gradient with respect to a convolution's input.

    Args:
        grad_input: gradient to write, (n, c, h, w).
        grad_output: gradient of the result.
        weight: filters, (k, c, r, s).
        window: stride, padding and dilation.
        groups: groups of channels and filters.
        pooled: True if grad_output is the gradient of a pooled map, and un-pooled as it is read.
    """
    height, width = size_of(grad_input)
    stride_h, stride_w = window.stride
    return Product(
        images=grad_input.shape[0],
        size=(triton.cdiv(height, stride_h), triton.cdiv(width, stride_w)),
        filters=weight.shape[1],
        channels=weight.shape[0] // groups,
        taps=size_of(weight),
        groups=groups,
        # a stride larger than the image leaves phases without a pixel
        phases=(min(stride_h, height), min(stride_w, width)),
        pool=(1, 1),
        element_size=weight.element_size(),
        dense=window.stride == (1, 1) and window.dilation == (1, 1) and not pooled,
        side_by_side=grad_output.stride(1) == 1,
        gradient=True,
    )


def size_of(images: Tensor) -> Pair:
    """Return height and width of (n, c, h, w) images, or of the filters of a weight."""
    return images.shape[2], images.shape[3]


def select_plan(
    like: Tensor,
    product: Product,
    architecture: str,
    kind: Kind,
    *,
    wide: bool,
    pooled: bool = False,
) -> Plan:
    """Return the plan of a launch: the one measured on the GPU of a tensor, else the rule's.

    Args:
        like: tensor on the GPU of the launch.
        product: product to compute.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        wide: True if offsets need 64 bits.
        pooled: True if the product un-pools a gradient as it reads it.
    """
    if not autotune.is_enabled(like):
        return build_plan(product, architecture, kind, wide=wide)
    part = "input gradient" if product.gradient else "forward"
    key = ("implicit GEMM", part, kind, wide, pooled, *product)
    return autotune.select(like, key, candidate_plans(product, architecture, kind, wide=wide))


def build_plan(
    product: Product,
    architecture: str,
    kind: Kind,
    *,
    wide: bool = False,
    tile: Tile | None = None,
) -> Plan:
    """Choose tile and loader by rule, from the sizes alone.

    Args:
        product: product to compute.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        wide: True if offsets need 64 bits.
        tile: tile to use instead of the table's.
    """
    table = FLATTENED_TILES if product.is_flattened else TILES
    if wide:
        table = CAREFUL_TILES
    if product.is_flattened:
        return Plan(tile or _tile_of(table, product, architecture, kind), "flattened", _NO_PATCH)
    plan = _easy_plan(product, architecture, kind, tile or _tile_of(table, product, architecture, kind))
    if plan is not None:
        return plan
    return Plan(tile or _tile_of(CAREFUL_TILES, product, architecture, kind), "pointers", _NO_PATCH)


def candidate_plans(product: Product, architecture: str, kind: Kind, *, wide: bool = False) -> tuple[Plan, ...]:
    """Return every plan whose tile is in the tables for this product, the rule's first.

    Args:
        product: product to compute.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        wide: True if offsets need 64 bits.
    """
    plans = [build_plan(product, architecture, kind, wide=wide)]
    careful = CAREFUL_TILES[architecture][kind]
    table = FLATTENED_TILES if product.is_flattened else TILES
    if wide:
        table = CAREFUL_TILES
    tiles = table[architecture][kind]
    if product.is_flattened:
        plans += [Plan(tile, "flattened", _NO_PATCH) for tile in tiles]
    else:
        for tile in tiles:
            plan = _easy_plan(product, architecture, kind, tile)
            if plan is not None:
                plans.append(plan)
        plans += [Plan(tile, "pointers", _NO_PATCH) for tile in careful]
    return tuple(dict.fromkeys(plans))  # each once, in order


def count_blocks(plan: Plan, product: Product) -> tuple[int, int, int]:
    """Return the number of blocks along filters, pixels and groups."""
    height, width = product.size
    if plan.loader == "descriptors":
        pixel_blocks = product.images * triton.cdiv(height, plan.patch[0]) * triton.cdiv(width, plan.patch[1])
    else:
        pixel_blocks = triton.cdiv(product.images * height * width, plan.tile.rows // product.positions)
    return triton.cdiv(product.filters, plan.tile.columns), pixel_blocks, product.groups


def padding_of(window: Window, plan: Plan, product: Product) -> Pair:
    """Return the padding as the plan's loader counts it.

    Descriptors meet a gradient's taps in reverse order, from the other side of the image.
    """
    if product.gradient and plan.loader == "descriptors":
        return product.taps[0] - 1 - window.padding[0], product.taps[1] - 1 - window.padding[1]
    return window.padding


def tap_step_of(window: Window, product: Product) -> Pair:
    """Return the distance between the taps of one phase of a gradient; (1, 1) for a forward product."""
    if not product.gradient:
        return (1, 1)
    stride_h, stride_w = window.stride
    dilation_h, dilation_w = window.dilation
    return stride_h // math.gcd(stride_h, dilation_h), stride_w // math.gcd(stride_w, dilation_w)


def _tile_of(table: Table, product: Product, architecture: str, kind: Kind) -> Tile:
    """Choose a table's tile for a product."""
    rows = product.images * math.prod(product.size) * product.positions
    products = product.groups * math.prod(product.phases)
    return choose_tile(table[architecture][kind], architecture, rows, product.filters, products)


def _easy_plan(product: Product, architecture: str, kind: Kind, tile: Tile) -> Plan | None:
    """Return the plan with cheap addresses for a tile: descriptors, or pointers whose every step and column is full.

    None if the product allows neither.
    """
    if kind != "ieee" and architecture in _DESCRIPTOR_ARCHITECTURES:
        patch = _least_overhanging_patch(product, tile)
        if patch is not None:
            return Plan(tile, "descriptors", patch)
    fills_tiles = product.channels % tile.depth == 0 and product.filters % tile.columns == 0
    if product.side_by_side and fills_tiles:
        return Plan(tile, "pointers", _NO_PATCH)
    return None


def _least_overhanging_patch(product: Product, tile: Tile) -> Pair | None:
    """Return the rectangle of a tile's windows with the least overhang over the image.

    None if descriptors cannot load the product, or if every rectangle overhangs too much.
    """
    if not _descriptors_can_load(product, tile):
        return None
    windows = tile.rows // product.positions
    patch = None
    fewest = math.inf
    for shift in range(windows.bit_length()):
        high, wide = windows >> shift, 1 << shift
        if max(high * product.pool[0], wide * product.pool[1]) > _LONGEST_SIDE:
            continue
        covered = triton.cdiv(product.size[0], high) * high * triton.cdiv(product.size[1], wide) * wide
        if covered < fewest:
            patch = (high, wide)
            fewest = covered
    if fewest > _MOST_OVERHANG * math.prod(product.size):
        return None
    return patch


def _descriptors_can_load(product: Product, tile: Tile) -> bool:
    """Return True if tensor descriptors can load both operands of a product."""
    pixel_bytes = product.groups * product.channels * product.element_size
    is_aligned = pixel_bytes % _ALIGNMENT == 0
    if product.gradient:  # the weight's rows are the convolution's channels
        is_aligned &= product.filters * product.element_size % _ALIGNMENT == 0
    # the hardware fills with zeros behind the last channel of all groups, not behind a group's
    stays_in_group = product.groups == 1 or product.channels % tile.depth == 0
    # a rectangle holds whole windows, without rows that fill up to a power of two
    has_whole_windows = math.prod(product.pool) == product.positions
    return product.dense and is_aligned and stays_in_group and has_whole_windows
