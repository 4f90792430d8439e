"""Changes figure by figure; and kernels made worse on purpose, noticed by `inspect` and by the compile tests."""

import importlib
from unittest import mock

import pytest
from helpers.compiling import assert_neighbours_are_read_at_once, assert_sound
from helpers.mutants import mutants, put_in_place
from helpers.small_layers import layer

from lightconv.analysis import inspection
from lightconv.analysis.comparison import Change, changes
from lightconv.kernels import implicit_gemm_plan
from lightconv.kernels.tiles import Tile
from lightconv.nn import ConvBlock, MaxPool2d

HEALTHY = {
    "layer": "conv1", "operator": "conv_block", "kernel": "implicit_gemm",
    "tile": "128x128x32 pointers", "loads": "128", "stores": "128", "registers": 160, "spilled": 0, "shared": 32768,
    "blocks": 2, "occupancy": 0.25, "matrix": 32, "others": 64, "divisions": 0, "outside": 800, "code_bytes": 14336,
    "seconds": 1e-3, "bound": "issue",
}  # fmt: skip
NAME = "conv1 conv_block implicit_gemm"


def report(**figures):
    return HEALTHY | figures


def verdicts(before, after):
    return {change.figure: change.verdict for change in changes([before], [after])}


WORSE = {
    "spilled": {"spilled": 8},
    "blocks": {"blocks": 1},
    "loads": {"loads": "128 16"},
    "stores": {"stores": "128 8"},
    "matrix": {"matrix": 0},
    "instructions_per_matrix_instruction": {"others": 65},
    "divisions": {"divisions": 1},
    "seconds": {"seconds": 1.02e-3},
}


@pytest.mark.parametrize("figure", WORSE)
def test_verdicts_both_ways(figure):
    worse = report(**WORSE[figure])
    alone = {figure} if figure != "matrix" else {"matrix", "instructions_per_matrix_instruction"}
    assert verdicts(HEALTHY, worse) == dict.fromkeys(alone, "worse")
    assert verdicts(worse, HEALTHY) == dict.fromkeys(alone, "better")
    assert verdicts(worse, worse) == {}


def test_figure_missing_before():
    before = {figure: value for figure, value in HEALTHY.items() if figure != "stores"}
    assert verdicts(before, report(stores="16")) == {}


def test_same_layer_on_two_gpus():
    before = [report(gpu=gpu) for gpu in ("a100", "h100")]
    after = [report(gpu="a100", spilled=8), report(gpu="h100")]
    assert [(c.kernel, c.verdict) for c in changes(before, after)] == [(f"a100 {NAME}", "worse")]


def test_lost_tensor_memory_access():
    described = report(loads="TMA")
    assert verdicts(described, report(loads="128")) == {"tensor memory access": "worse"}
    assert verdicts(report(loads="128"), described) == {"tensor memory access": "better"}
    assert verdicts(described, report(loads="32")) == {"tensor memory access": "worse", "loads": "worse"}


@pytest.mark.parametrize("figure", ["tile", "registers", "shared", "outside", "code_bytes"])
def test_neutral_figures(figure):
    assert verdicts(HEALTHY, report(**{figure: 1})) == {figure: ""}


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"seconds": 1.009e-3},
        {"seconds": 0.991e-3},
        {"matrix": 64, "others": 128},  # an unrolled loop
        {"occupancy": 0.5, "bound": "memory", "compile_seconds": 9},
    ],
)
def test_no_change(figures):
    assert verdicts(HEALTHY, report(**figures)) == {}


def test_seconds_without_data_sheet():
    assert verdicts(report(seconds=None), report(seconds=None)) == {}


def test_change_has_both_values():
    assert changes([HEALTHY], [report(spilled=8)]) == [Change(NAME, "spilled", 0, 8, "worse")]
    assert changes([HEALTHY], [report(blocks=1)]) == [Change(NAME, "blocks", 2, 1, "worse")]
    assert changes([HEALTHY], [report(others=128)]) == [
        Change(NAME, "instructions_per_matrix_instruction", 2, 4, "worse")
    ]


def test_new_and_gone_kernels():
    found = changes([HEALTHY], [report(layer="conv2")])
    assert [(c.kernel, c.figure, c.after) for c in found] == [
        (NAME, "kernel", "gone"),
        ("conv2 conv_block implicit_gemm", "kernel", "new"),
    ]


def test_same_layer_of_two_networks():
    before = [report(network=name) for name in ("lenet", "vgg16")]
    after = [before[0], report(network="vgg16", spilled=8)]
    assert [change.kernel for change in changes(before, after)] == [f"vgg16 {NAME}"]


def test_worst_change_first():
    before = [report(layer="a"), report(layer="b", divisions=2), report(layer="c")]
    after = [report(layer="a", registers=9), report(layer="b"), report(layer="c", spilled=9)]
    assert [change.verdict for change in changes(before, after)] == ["worse", "better", ""]


# ---- kernels made worse on purpose

ARCHITECTURE = "sm_80"


def forward_only(module, *images):
    return layer(module.requires_grad_(False), *images, needs_gradient=False)


BLOCK = forward_only(ConvBlock(64, 64, 3, padding=1), 8, 64, 32, 32)
LARGE = forward_only(ConvBlock(128, 128, 3, padding=1), 8, 128, 56, 56)  # takes the largest tile
POOLING = forward_only(MaxPool2d(3, 2, 1), 3, 64, 21, 21)  # the last block is not full


def judged(given):
    """Return the report on a layer's only kernel as a dictionary, and the compiled kernel."""
    found = inspection.inspect([given], ARCHITECTURE, None)
    (kernel,), (code,) = found.kernels, found.codes
    return kernel._asdict(), code


def failure(given, kernel):
    """Return the message with which the compile tests refuse a layer's kernel; None if they accept it."""
    try:
        if given is POOLING:
            assert_neighbours_are_read_at_once(kernel, "float16")
        else:
            assert_sound(kernel, "fused", ARCHITECTURE, "half", largest=given is LARGE)
    except AssertionError as error:
        return str(error)
    return None


@pytest.mark.compile
def test_tile_too_large_for_its_warps():
    healthy, code = judged(BLOCK)
    assert failure(BLOCK, code) is None
    with mock.patch.object(implicit_gemm_plan, "choose_tile", return_value=Tile(64, 64, 64, 1, 2)):
        broken, code = judged(BLOCK)
    assert verdicts(healthy, broken)["spilled"] == "worse"
    assert "spilled" in failure(BLOCK, code)


EVEN = "EVEN_CHANNELS=product.channels % depth == 0, EVEN_FILTERS=product.filters % columns == 0"
UNEVEN = "EVEN_CHANNELS=False, EVEN_FILTERS=False"
STEP = "block_columns(c0, channels, DEPTH"
DIVIDED = "block_columns(c0 + c0 // channels * DEPTH, channels, DEPTH"
LOAD = "input_tile = tl.load(input_ptr + input_offset, mask=input_in, other=0.0)\n"
MASKED = f"{LOAD}                input_tile = tl.where(input_in, input_tile, 0.0)\n"  # the load did this already
CLAMPED = "tl.where(element_in, n, 0), c, h, w"
MADE_WORSE = [  # module, part of its source, broken part, layer, worse figure, message of the compile tests
    ("implicit_gemm", EVEN, UNEVEN, BLOCK, "loads", "single elements"),
    ("implicit_gemm", STEP, DIVIDED, BLOCK, "divisions", "division"),
    ("implicit_gemm", LOAD, MASKED, LARGE, "instructions_per_matrix_instruction", "other instructions"),
    ("max_pooling", CLAMPED, CLAMPED.replace("c,", "tl.where(element_in, c, 0),"), POOLING, "loads", "16 bytes"),
]


@pytest.mark.compile
@pytest.mark.parametrize(("module", "source", "broken", "given", "figure", "words"), MADE_WORSE)
def test_kernel_made_worse(module, source, broken, given, figure, words, tmp_path, monkeypatch):
    original = importlib.import_module(f"lightconv.kernels.{module}")
    healthy, code = judged(given)
    assert failure(given, code) is None
    (mutant,) = mutants(original, source, broken, tmp_path)
    put_in_place(mutant, original, monkeypatch)
    worse, code = judged(given)
    assert verdicts(healthy, worse)[figure] == "worse"
    assert words in failure(given, code)
