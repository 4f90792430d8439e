from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "arguments", [(), ("dtype=bfloat16", "channels_last=false"), ("layers=null", "batch_size=2"), ("model.channels=3",)]
)
def test_counts_of_both_sides(lightconv, capsys, arguments):
    lightconv("bench", *arguments)
    printed = capsys.readouterr().out
    for word in ("lightconv", "torch", "ratio", "launches", "operators", "read", "written", "saved for backward"):
        assert word in printed
    assert list(Path().iterdir()) == []


def test_counts_of_lenet_by_torch(lightconv, capsys):
    lightconv("bench")
    printed = capsys.readouterr().out
    assert "LeNet conv1, conv2: forward and backward of 256 images, float32, channels_last" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("│     torch"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["torch", "15", "12", "47.6", "31.9", "79.5", "11.7"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layers=[conv1,conv3]"], ["conv3", "conv1, conv2, fc1"]),
        (["layers=[conv2]"], ["layers=['conv2']", "channel"]),
        (["model.image_size=8"], ["at least 12x12"]),
        (["model=alexnet"], ["model=alexnet", "lenet"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_invalid_settings(lightconv, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        lightconv("bench", *arguments)
    message = capsys.readouterr().err
    assert "error: " in message
    for word in words:
        assert word in message
