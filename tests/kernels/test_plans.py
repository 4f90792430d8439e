"""What tuning may choose between: the rule's plan and others of the same tables, which the compile tests compile."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv.kernels import implicit_gemm, weight_gradient
from lightconv.kernels.tiles import ARCHITECTURES

SIZES = st.sampled_from([1, 3, 16, 20, 64, 128, 512])
PRODUCTS = st.builds(
    implicit_gemm.Product,
    images=st.integers(1, 64),
    size=st.tuples(st.integers(1, 112), st.integers(1, 112)),
    filters=SIZES,
    channels=SIZES,
    taps=st.sampled_from([(1, 1), (3, 3), (5, 3)]),
    groups=st.sampled_from([1, 2]),
    phases=st.sampled_from([(1, 1), (2, 2)]),
    pool=st.sampled_from([(1, 1), (2, 2), (3, 3)]),
    element_size=st.sampled_from([2, 4]),
    dense=st.booleans(),
    side_by_side=st.booleans(),
    gradient=st.booleans(),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=30, deadline=None)
@given(product=PRODUCTS, half=st.booleans(), wide=st.booleans())
def test_a_product_can_be_computed_by_the_tiles_of_its_tables(architecture, product, half, wide):
    kind = "half" if half else "ieee"
    first, *others = implicit_gemm.plans(product, architecture, kind, wide)
    assert first == implicit_gemm.plan(product, architecture, kind, wide)
    assert first not in others
    easy = implicit_gemm.TILES[architecture][kind]
    careful = implicit_gemm.CAREFUL_TILES[architecture][kind]
    for plan in (first, *others):
        tile = plan.tile
        if plan.loader == "flattened":
            assert tile in (careful if wide else implicit_gemm.FLATTENED_TILES[architecture][kind])
        elif tile not in careful:
            assert tile in easy
            assert not wide
            filled = product.channels % tile.depth == 0 and product.filters % tile.columns == 0
            assert plan.loader == "descriptors" or (product.side_by_side and filled)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=30, deadline=None)
@given(product=PRODUCTS, half=st.booleans(), careful=st.booleans())
def test_a_weight_gradient_can_be_computed_by_the_tiles_of_its_tables(architecture, product, half, careful):
    kind = "half" if half else "ieee"
    shape = (product.filters * product.groups, product.channels, *product.taps)
    sizes = (product.images, product.size, shape, product.groups, architecture, kind, careful)
    first, *others = weight_gradient.plans(*sizes)
    assert first == weight_gradient.plan(*sizes)
    assert first not in others
    for plan in (first, *others):
        tile = plan.tile
        if plan.flattened and not careful:
            assert tile in weight_gradient.FLATTENED_TILES[architecture][kind]
        elif tile not in implicit_gemm.CAREFUL_TILES[architecture][kind]:
            assert tile in weight_gradient.TILES[architecture][kind]
            assert (product.filters % tile.rows, product.channels % tile.columns) == (0, 0)
