"""Candidate plans for tuning: the rule's plan comes first, and every tile is one the compile tests compile."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv.kernels import implicit_gemm_plan, weight_gradient_plan
from lightconv.kernels.tiles import ARCHITECTURES

SIZES = st.sampled_from([1, 3, 16, 20, 64, 128, 512])
PRODUCTS = st.builds(
    implicit_gemm_plan.Product,
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
KINDS = st.sampled_from(["half", "ieee"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=30, deadline=None)
@given(product=PRODUCTS, kind=KINDS, wide=st.booleans())
def test_plans_of_a_product(architecture, product, kind, wide):
    first, *others = implicit_gemm_plan.candidate_plans(product, architecture, kind, wide=wide)
    assert first == implicit_gemm_plan.build_plan(product, architecture, kind, wide=wide)
    assert first not in others
    easy = implicit_gemm_plan.TILES[architecture][kind]
    careful = implicit_gemm_plan.CAREFUL_TILES[architecture][kind]
    flattened = implicit_gemm_plan.FLATTENED_TILES[architecture][kind]
    for plan in (first, *others):
        tile = plan.tile
        if plan.loader == "flattened":
            assert tile in (careful if wide else flattened)
        elif tile not in careful:
            assert tile in easy
            assert not wide
            is_filled = product.channels % tile.depth == 0 and product.filters % tile.columns == 0
            assert plan.loader == "descriptors" or (product.side_by_side and is_filled)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=30, deadline=None)
@given(product=PRODUCTS, kind=KINDS, careful=st.booleans())
def test_plans_of_a_weight_gradient(architecture, product, kind, careful):
    weight_shape = (product.filters * product.groups, product.channels, *product.taps)
    sizes = (product.images, product.size, weight_shape, product.groups, architecture, kind)
    first, *others = weight_gradient_plan.candidate_plans(*sizes, careful=careful)
    assert first == weight_gradient_plan.build_plan(*sizes, careful=careful)
    assert first not in others
    for plan in (first, *others):
        tile = plan.tile
        if plan.flattened and not careful:
            assert tile in weight_gradient_plan.FLATTENED_TILES[architecture][kind]
        elif tile not in implicit_gemm_plan.CAREFUL_TILES[architecture][kind]:
            assert tile in weight_gradient_plan.TILES[architecture][kind]
            assert (product.filters % tile.rows, product.channels % tile.columns) == (0, 0)
