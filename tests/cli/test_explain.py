from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import lightconv as lc
from lightconv.cli import tables

RESNET = ("model=pretrained", "model.backbone=torchvision/resnet18", "model.weights=none", "model.image_size=64")
FUSED = ("model.width=8", "backend=triton", "dtype=float16")
DENSENET = ("model=pretrained", "model.backbone=torchvision/densenet121", "model.weights=none", "image_size=64")


@pytest.fixture
def printed(lightconv, capsys, monkeypatch):
    """Run `lightconv explain` in a terminal of a width and return the printed text."""

    def run(*arguments, width=200):
        monkeypatch.setattr(tables.console, "width", width)
        lightconv("explain", *arguments)
        return capsys.readouterr().out

    return run


def words(text):
    """The words of a text, with names broken at their dots."""
    return set(text.replace(".", ". ").split())


def cells(printed):
    """The cells of each row of a table that breaks no line."""
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in lines]


def as_cells(explanation):
    return [(row.name, row.layer, row.served_by, row.tile, row.reason) for row in explanation.rows]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "gfx942"])
def test_rows_equal_those_of_python(printed, architecture):
    images = torch.empty(256, 1, 28, 28).to(memory_format=torch.channels_last)
    model = lc.models.LeNet().to(memory_format=torch.channels_last)
    expected = lc.explain(model, images, architecture=architecture)
    output = printed(f"architecture={architecture}")
    assert f"on {architecture}" in output
    assert cells(output) == as_cells(expected)


def test_settings_reach_the_model(printed):
    layout = {"dtype": torch.float16, "memory_format": torch.contiguous_format}
    images = torch.empty(8, 3, 32, 32).to(**layout)
    with lc.use_backend("triton"):
        expected = lc.explain(lc.models.LeNet(channels=3, image_size=32).to(**layout), images, architecture="sm_80")
    output = printed(
        "architecture=sm_80",
        "backend=triton",
        "batch_size=8",
        "dtype=float16",
        "channels_last=false",
        "model.channels=3",
        "model.image_size=32",
    )
    assert cells(output) == as_cells(expected)
    assert "backend 'triton' is selected" in output


def test_this_machine_without_architecture(printed):
    expected = lc.explain(lc.models.LeNet(), torch.empty(1, 1, 28, 28))
    (reason,) = {row.reason for row in expected.rows}
    assert reason in printed()


def test_pretrained_network_tells_its_image_size(printed):
    output = printed(*RESNET, "architecture=sm_90", "batch_size=2")
    network = lc.models.Pretrained("torchvision/resnet18", weights="none", image_size=64)
    expected = lc.explain(network, torch.empty(2, 3, 64, 64), architecture="sm_90")
    assert cells(output) == as_cells(expected)
    assert "lightconv.swap changes it" in output


@pytest.mark.parametrize(
    "settings", [(), RESNET, DENSENET, FUSED], ids=["lenet", "resnet18", "densenet121", "other tiles"]
)
def test_narrow_terminals_cut_no_words(printed, settings):
    wide = printed(*settings, "architecture=sm_90", "batch_size=2", width=250)
    narrow = printed(*settings, "architecture=sm_90", "batch_size=2", width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    rows = cells(wide)
    assert rows
    for row in rows:
        assert words(" ".join(row)) <= words(narrow)


def test_long_names_are_broken_at_dots(printed):
    narrow = printed(*DENSENET, "architecture=sm_90", "batch_size=2", width=80)
    assert "\n(1) torch.nn layer: lightconv.swap changes it" in narrow
    lines = [line.split() for line in narrow.splitlines()]
    first = lines.index(["backbone.features.denseblock4.", "Conv2d", "torch", "(1)"])
    assert lines[first + 1] == ["denselayer1.conv1"]


def test_writes_no_files(printed):
    printed("architecture=sm_90")
    assert list(Path.cwd().rglob("*")) == []


def test_configuration_needs_no_network_to_be_built(lightconv, capsys):
    lightconv("explain", "--cfg", "job", "model=pretrained")
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.batch_size == 256
    assert config.architecture is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["what=augmentation"], ["what=augmentation", "lightconv gallery"]),
        (["architecture=sm_75"], ["sm_75", "sm_80", "gfx942"]),
        (["backend=fast"], ["unknown backend 'fast'"]),
        (["dtype=int8"], ["dtype=int8", "float32, float16, bfloat16"]),
        (["batch_size=0"], ["batch_size=0", "at least 1"]),
        (["image_size=0"], ["image_size=0", "at least 1"]),
        (["channels=many"], ["channels=many"]),
        (["model=unknown"], ["model=unknown", "lenet"]),
        (["model.backbone=torchvision/none", "model=pretrained"], ["torchvision has no network none"]),
    ],
)
def test_mistakes(lightconv, mistake, arguments, expected):
    message = mistake(lightconv, "explain", *arguments)
    for word in expected:
        assert word in message


def test_nothing_is_downloaded(printed, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    settings = [setting for setting in RESNET if "weights" not in setting]
    assert printed(*settings) == printed(*RESNET)
    assert printed(*settings, "model.weights=missing.pt") == printed(*RESNET)


def test_text_cuts_no_name():
    name = "a_long_name_of_a_module_that_nobody_should_have_to_guess"
    model = torch.nn.Sequential()
    inner = model
    for _ in range(3):
        inner.add_module(name, torch.nn.Sequential())
        inner = inner[0]
    inner.append(torch.nn.Conv2d(3, 4, 3))
    explanation = lc.explain(model, torch.empty(1, 3, 8, 8))
    assert f"{name}.{name}.{name}.0" in str(explanation)
    assert len(str(lc.explain(torch.nn.Conv2d(3, 4, 3), torch.empty(1, 3, 8, 8))).splitlines()[0]) <= 120
