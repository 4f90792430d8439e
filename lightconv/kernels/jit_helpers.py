"""Functions shared by kernels; Triton inlines them. The names are explained in `lightconv.kernels`."""

import triton
import triton.language as tl

from lightconv.kernels import argmax

KILLED = tl.constexpr(argmax.KILLED)
LEAKY_SLOPE = tl.constexpr(0.01)  # torch.nn.functional.leaky_relu's


@triton.jit
def tanh(x):
    """Compute tanh as Cephes' tanhf does (Moshier, netlib.org/cephes).

    Near 0 it is a polynomial, because 1 - 2 / (exp(2x) + 1) would cancel there.
    """
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    near = (p - 3.33332819422e-1) * z * x + x
    size = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -size, size))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply an activation with torch's results for NaN and infinities."""
    if ACTIVATION == "relu":
        x = tl.where(x <= 0, 0.0, x)  # NaN stays NaN; tl.maximum would drop it
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, x * LEAKY_SLOPE)
    elif ACTIVATION == "sigmoid":
        x = 1 / (1 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        x = tanh(x)
    return x


@triton.jit
def max_with_argmax(value, AREA: tl.constexpr, POSITIONS: tl.constexpr):
    """Reduce every POSITIONS consecutive rows to the largest value and its position; rows from AREA on do not count.

    (windows * POSITIONS, columns) -> values and positions, (windows, columns) each. Ties and NaN follow torch: the
    first of equal values wins, NaN wins over every number and the last NaN over the others.
    """
    ROWS: tl.constexpr = value.shape[0] // POSITIONS
    COLUMNS: tl.constexpr = value.shape[1]
    half: tl.constexpr = value.dtype.primitive_bitwidth == 16
    BITS: tl.constexpr = tl.int16 if half else tl.int32
    KEY: tl.constexpr = tl.int32 if half else tl.int64
    TOP: tl.constexpr = 0x7FFF if half else 0x7FFFFFFF  # the bits of a NaN, above those of infinity

    # Hazard: tl.max drops NaN, and tl.argmax breaks ties otherwise than torch. So value and position are packed into
    # one integer key, whose maximum is both: the value's bits, in an order that integers have, above 8 bits of rank.
    position = tl.arange(0, POSITIONS)[None, :, None]
    # (windows * POSITIONS, columns) -> (windows, POSITIONS, columns); -0 becomes 0, which it equals
    value = tl.reshape(tl.where(value == 0, 0.0, value).to(value.dtype), (ROWS, POSITIONS, COLUMNS))
    bits = value.to(BITS, bitcast=True).to(KEY)
    is_nan = value != value
    ordered = tl.where(is_nan, TOP, tl.where(bits < 0, bits ^ TOP, bits))
    key = ordered * 256 + tl.where(is_nan, position, 255 - position)
    best = tl.max(tl.where(position < AREA, key, (-TOP - 1) * 256), 1)  # -> (windows, columns)

    ordered = best >> 8
    rank = (best & 255).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ TOP, ordered).to(BITS)
    return bits.to(value.dtype, bitcast=True), tl.where(ordered == TOP, rank, 255 - rank)


@triton.jit
def round_to_output(value, output_ptr, BFLOAT16: tl.constexpr):
    """Round to the output's dtype: torch compares rounded values, and max-pooling must find the same ties.

    BFLOAT16 says that the output is bfloat16. The interpreter holds such tensors in float32, so there bits are rounded.
    """
    if BFLOAT16 and output_ptr.dtype.element_ty == tl.float32:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        value = tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)
    return value.to(output_ptr.dtype.element_ty)


@triton.jit
def patch_corner(block, size, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """Return a block's image and the upper left corner of its patch, a PATCH_H x PATCH_W rectangle of pixels."""
    across = tl.cdiv(size[1], PATCH_W)
    patches = tl.cdiv(size[0], PATCH_H) * across
    patch = block % patches
    return block // patches, patch // across * PATCH_H, patch % across * PATCH_W


@triton.jit
def pixel_coordinates(offset, block, images, size, PIXELS: tl.constexpr, PATCH_W: tl.constexpr, INDEX: tl.constexpr):
    """Return image, row and column of a block's pixels, clamped into the images, and a mask of those that exist.

    A block has PIXELS pixels: a patch that is PATCH_W wide, or a run of pixels if PATCH_W is 0.
    """
    if PATCH_W:
        n, top, left = patch_corner(block, size, PIXELS // PATCH_W, PATCH_W)
        i, j = top + offset // PATCH_W, left + offset % PATCH_W
        inside = (i < size[0]) & (j < size[1])
        n, i, j = n.to(INDEX), tl.where(inside, i, 0).to(INDEX), tl.where(inside, j, 0).to(INDEX)
    else:
        pixel = block.to(INDEX) * PIXELS + offset
        # the number of pixels is computed in INDEX: images * height * width may exceed 32 bits
        inside = pixel < (tl.full((), 0, INDEX) + images) * size[0] * size[1]
        pixel = tl.where(inside, pixel, 0)
        n, i, j = pixel // size[1] // size[0], pixel // size[1] % size[0], pixel % size[1]
    return n, i, j, inside


@triton.jit
def block_columns(first, size, WIDTH: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr):
    """Return a block's channels or filters, from the first on, and a mask of those below size.

    EVEN promises that WIDTH divides size. Otherwise they are clamped and masked, which costs vector loads.
    """
    column = first + tl.arange(0, WIDTH).to(INDEX)
    inside = column < size
    if EVEN:
        inside = tl.full((WIDTH,), True, tl.int1)
    else:
        column = tl.where(inside, column, 0)
    return column, inside


@triton.jit
def unpool(grad_tile, argmax_ptrs, inside, position):
    """Keep a pooled gradient where the pixel's position in its window is the window's argmax; 0 elsewhere."""
    kept = tl.load(argmax_ptrs, mask=inside, other=KILLED)
    return tl.where(kept == position.to(tl.uint8), grad_tile, 0.0).to(grad_tile.dtype)
