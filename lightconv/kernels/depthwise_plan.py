"""Tiles of the depthwise kernels, and how a launch divides its work into blocks.

A block computes a rectangle of pixels of one image for a few neighbouring channels. A tile has ``rows`` pixels and
``columns`` channels. For the weight gradient ``depth`` is the number of filter taps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels import autotune
from lightconv.kernels.tiles import ARCHITECTURES, MULTIPROCESSORS, Tile, Tiles, choose_tile
from lightconv.kernels.window import Pair

TILES: Mapping[str, Tiles] = dict.fromkeys(
    ARCHITECTURES, (Tile(128, 32, 1, 4, 1), Tile(64, 32, 1, 4, 1), Tile(32, 16, 1, 2, 1))
)
WEIGHT_TILES: Mapping[str, Tiles] = dict.fromkeys(ARCHITECTURES, (Tile(32, 32, 9, 4, 1), Tile(32, 16, 9, 2, 1)))
_RECTANGLE_WIDTH = 8
_BLOCKS_PER_MULTIPROCESSOR = 3  # weight gradient
_RECTANGLES_PER_SPLIT = 8  # the fewest that make a split of the weight gradient's sum worth its launch and its addition


def forward_tile(images: Tensor, weight_shape: Sequence[int], size: Pair, stride: Pair, architecture: str) -> Tile:
    """Return the tile of `lightconv.kernels.depthwise.forward`: the measured one, or else the rule's.

    Args:
        images: batch of images, (n, c, h, w).
        weight_shape: shape of the weight, (k, 1, r, s).
        size: size of the output, (h, w).
        stride: stride of the convolution, (h, w).
        architecture: one of `tiles.ARCHITECTURES`.
    """
    filters, _, *taps = weight_shape
    tiles = TILES[architecture]
    rule = choose_tile(tiles, architecture, images.shape[0] * math.prod(size), filters)
    return _select(rule, tiles, images, "forward", (filters, *taps), stride)


def input_gradient_tile(
    grad_output: Tensor, input_shape: Sequence[int], taps: Pair, stride: Pair, architecture: str
) -> Tile:
    """Return the tile of `lightconv.kernels.depthwise.input_gradient`: the measured one, or else the rule's.

    Args:
        grad_output: gradient of the output, (n, k, oh, ow).
        input_shape: shape of the images, (n, c, h, w).
        taps: size of a filter, (r, s).
        stride: stride of the convolution, (h, w).
        architecture: one of `tiles.ARCHITECTURES`.
    """
    n, channels, height, width = input_shape
    tiles = TILES[architecture]
    phases = phase_counts((height, width), stride)
    pixels = n * math.prod(phase_size((height, width), stride))
    rule = choose_tile(tiles, architecture, pixels, channels, math.prod(phases))
    return _select(rule, tiles, grad_output, "input gradient", (n, channels, height, width), taps, stride)


def weight_gradient_tile(
    images: Tensor, weight_shape: Sequence[int], size: Pair, stride: Pair, architecture: str
) -> Tile:
    """Return the tile of `lightconv.kernels.depthwise.weight_gradient`: the measured one, or else the rule's.

    Args:
        images: batch of images, (n, c, h, w).
        weight_shape: shape of the weight, (k, 1, r, s).
        size: size of the output, (h, w).
        stride: stride of the convolution, (h, w).
        architecture: one of `tiles.ARCHITECTURES`.
    """
    tiles = WEIGHT_TILES[architecture]
    rule = choose_tile(tiles, architecture, images.shape[0] * math.prod(size), weight_shape[0])
    return _select(rule, tiles, images, "weight gradient", tuple(weight_shape), stride)


def _select(rule: Tile, tiles: Tiles, images: Tensor, part: str, *sizes: Sequence[int]) -> Tile:
    """Return the tile measured on the GPU of the images, or else the rule's."""
    if not autotune.is_enabled(images):
        return rule
    key = ("depthwise", part, autotune.tensor_key(images), *sizes)
    options = tuple(dict.fromkeys([rule, *tiles]))  # the rule's first, each tile once
    return autotune.select(images, key, options)


def phase_counts(size: Pair, stride: Pair) -> Pair:
    """Return the number of phases of the input gradient. A stride beyond the image leaves phases without a pixel."""
    return min(stride[0], size[0]), min(stride[1], size[1])


def phase_size(size: Pair, stride: Pair) -> Pair:
    """Return the largest number of rows and columns of a phase: pixels at distances of the stride."""
    return triton.cdiv(size[0], stride[0]), triton.cdiv(size[1], stride[1])


class Block(NamedTuple):
    """Work of one block.

    Attributes:
        rows: height of its rectangle, in pixels.
        columns: width of its rectangle, in pixels.
        channels: number of channels or filters.
    """

    rows: int
    columns: int
    channels: int

    def rectangles(self, images: int, size: Pair) -> int:
        """Return the number of rectangles in a batch of images of this size."""
        return images * triton.cdiv(size[0], self.rows) * triton.cdiv(size[1], self.columns)


def fit_block(tile: Tile, size: Pair, channels: int, index: tl.dtype) -> Block:
    """Return the work of a block, no larger than the image.

    Args:
        tile: tile of the launch.
        size: size of the image, (h, w).
        channels: channels or filters of the image.
        index: integer type of addresses.
    """
    # 64-bit addresses take twice the registers, so a block has half the pixels
    pixels = tile.rows // 2 if index is tl.int64 else tile.rows
    columns = min(_RECTANGLE_WIDTH, triton.next_power_of_2(size[1]))
    return Block(
        rows=min(pixels // columns, triton.next_power_of_2(size[0])),
        columns=columns,
        channels=min(tile.columns, triton.next_power_of_2(channels)),
    )


def contiguous_run(block: Block, channels: int, *images: Tensor) -> int:
    """Return the number of channels per load or store.

    It divides the number of channels and every distance between pixels, so every run starts at a multiple of itself.

    Args:
        block: work of a block.
        channels: channels or filters of the launch.
        images: tensors that the launch reads and writes by runs, each (n, c, h, w).
    """
    run = math.gcd(block.channels, channels)
    for image in images:
        for dim in (0, 2, 3):
            if image.shape[dim] > 1:
                run = math.gcd(run, image.stride(dim))
    return run


def split_count(blocks: int, rectangles: int, architecture: str) -> int:
    """Return the number of splits of the weight gradient's sum.

    It depends on shapes and the architecture alone, so the same call has the same bits every time.

    Args:
        blocks: blocks of one split.
        rectangles: rectangles of the whole sum.
        architecture: one of `tiles.ARCHITECTURES`.
    """
    to_fill_gpu = triton.cdiv(_BLOCKS_PER_MULTIPROCESSOR * MULTIPROCESSORS[architecture], blocks)
    return max(1, min(to_fill_gpu, rectangles // _RECTANGLES_PER_SPLIT))
