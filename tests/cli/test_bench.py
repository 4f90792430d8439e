from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lightconv.cli import bench

SETTINGS = OmegaConf.create({"dtype": "float32", "channels_last": True})
TINY = bench.Layer("tiny block", (2, 4, 6, 6), lambda nn: nn.ConvBlock(4, 2, 3, padding=1, pool=2))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setattr("lightconv.cli.tables.console.width", 200)


@pytest.mark.parametrize(
    "arguments", [(), ("dtype=bfloat16", "channels_last=false"), ("layers=null", "batch_size=2"), ("model.channels=3",)]
)
def test_counts_both_sides_and_leaves_no_run_behind(lightconv, capsys, arguments):
    lightconv("bench", *arguments)
    printed = capsys.readouterr().out
    for word in ("lightconv", "torch", "ratio", "launches", "operators", "read", "written", "saved for backward"):
        assert word in printed
    assert list(Path().iterdir()) == []


def test_torchs_side_of_lenets_blocks(lightconv, capsys):
    lightconv("bench")
    printed = capsys.readouterr().out
    assert "LeNet conv1, conv2: forward and backward of 256 images, float32, channels_last" in printed
    (torchs,) = (line for line in printed.splitlines() if line.startswith("│     torch"))
    assert [cell.strip() for cell in torchs.split("│")[2:-1]] == ["15", "12", "47.6", "31.9", "79.5", "11.7"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["what=speed"], ["what=speed", "traffic, kernels"]),
        (["dtype=int8"], ["dtype=int8", "float32, float16, bfloat16"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["batch_size=many"], ["batch_size=many"]),
        (["layers=[conv1,conv3]"], ["conv3", "conv1, conv2, fc1"]),
        (["layers=[conv2]"], ["layers=['conv2']", "channel"]),
        (["model.image_size=8"], ["at least 12x12"]),
        (["model=alexnet"], ["model/alexnet", "lenet"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_mistakes_are_told(lightconv, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        lightconv("bench", *arguments)
    message = capsys.readouterr().err
    assert "error: " in message
    for word in words:
        assert word in message


def test_kernels_are_not_measured_without_a_gpu(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        lightconv("bench", "what=kernels", "output=tables/mine.md")
    assert "measures on a GPU and there is none here" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("layer", bench.LAYERS, ids=lambda layer: layer.name)
def test_both_libraries_build_the_layers_that_are_measured(layer):
    with torch.device("meta"):
        ours, theirs = layer.build(bench.nn), layer.build(bench.Torch)
        images = torch.empty(layer.images)
    assert ours(images).shape == theirs(images).shape
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_a_layer_is_checked_then_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr("triton.testing.do_bench", lambda step, return_mode: float(len(step()) == 2))
    rows = bench.measure(TINY, SETTINGS, "cpu")
    assert [row["pass"] for row in rows] == ["forward", "forward+backward"]
    assert bench.markdown(rows) == (
        "| layer | images | pass | lightconv | torch | torch.compile |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| tiny block | 2x4x6x6 | forward | 1.0000 | 1.0000 | 1.0000 |\n"  # 2 images; of the other, 4 tensors
        "| tiny block | 2x4x6x6 | forward+backward | 0.0000 | 0.0000 | 0.0000 |\n"
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_kernel_that_computes_something_else_is_not_timed(dtype):
    settings = OmegaConf.create({"dtype": dtype, "channels_last": True})
    bench.check(TINY, settings, "cpu")
    wrong = TINY._replace(build=lambda nn: torch.nn.AvgPool2d(2) if nn is bench.Torch else nn.MaxPool2d(2))
    with pytest.raises(AssertionError, match="tiny block: Tensor-likes are not equal"):
        bench.check(wrong, settings, "cpu")


@pytest.mark.gpu
def test_measures_on_a_gpu(lightconv, monkeypatch):
    monkeypatch.setattr(bench, "LAYERS", (TINY,))
    lightconv("bench", "what=kernels", "output=tables/mine.md")
    written = Path("tables/mine.md").read_text()
    assert torch.cuda.get_device_name() in written
    assert "| tiny block | 2x4x6x6 | forward+backward |" in written
