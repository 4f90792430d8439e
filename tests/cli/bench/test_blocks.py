from pathlib import Path

import pytest
import torch

from lightconv import nn
from lightconv.cli.bench import blocks
from lightconv.cli.bench.layers import BLOCKS


@pytest.fixture
def counted(monkeypatch):
    """Replace the clock: the number of tensors from a step, 1 forward, 4 forward and backward."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(blocks, "milliseconds", lambda step: float(len(step())))


def test_tables_of_both_memory_formats(lightconv, capsys, tiny, counted, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCKS", (tiny,))
    lightconv("bench", "what=blocks", "output=tables/mine.md", "rounds=2")
    table = (
        "| layer | images | pass | lightconv | torch | / lightconv |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| tiny block | 2 | forward | 1.0000 | 1.0000 | 1.0000 |\n"
        "| tiny block | 2 | forward+backward | 4.0000 | 4.0000 | 1.0000 |\n"
    )
    first, second, rest = Path("tables/mine.md").read_text().split(table)
    assert first.endswith("float32, contiguous, median of 2 rounds\n\n")
    assert second.endswith("float32, channels_last, median of 2 rounds\n\n")
    assert f"torch {torch.__version__}, " in first
    assert rest == ""
    assert first.strip() in " ".join(capsys.readouterr().out.split())  # wrapped


@pytest.mark.parametrize("layer", BLOCKS, ids=lambda layer: layer.name)
def test_batch_for_cpu(layer):
    assert isinstance(layer.build(nn), nn.ConvBlock)
    smaller = blocks.for_cpu(layer)
    assert 1 <= smaller.images[0] <= layer.images[0]
    assert (smaller.images[1:], smaller.name) == (layer.images[1:], layer.name)
    assert "LeNet" not in layer.name or smaller == layer


def test_wrong_block_is_not_timed(tiny, settings, monkeypatch):
    monkeypatch.setattr(blocks, "milliseconds", lambda step: pytest.fail("timed"))
    wrong = tiny._replace(build=lambda nn: nn.MaxPool2d(2) if hasattr(nn, "modules") else torch.nn.AvgPool2d(2))
    with pytest.raises(AssertionError, match="tiny block"):
        blocks.measure(wrong, settings, "cpu")


def test_half_precision_on_cpu(lightconv, capsys, counted):
    with pytest.raises(SystemExit, match="2"):
        lightconv("bench", "what=blocks", "dtype=bfloat16")
    assert "error: dtype=bfloat16: on a CPU" in capsys.readouterr().err


def test_timer_of_torch():
    assert blocks.milliseconds(lambda: None) > 0
