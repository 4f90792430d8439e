from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightconv.cli.bench import fused
from lightconv.nn.modules import ConvBlock
from lightconv.surgery.fuse import fuse


@pytest.fixture
def settings(settings):
    return OmegaConf.merge(settings, {"fused": {"batch_size": 3, "networks": ["tiny"]}})


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


@pytest.fixture
def counted(monkeypatch):
    """Replace the clock: one more than the number of fused convolutions."""
    calls = []

    def milliseconds(step):
        assert step().is_inference()
        calls.append(step)
        return 1.0 + sum(isinstance(module, ConvBlock) for module in step.func.modules())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fused, "milliseconds", milliseconds)
    return calls


def test_network_is_fused_and_unfused_in_turns(network, settings, counted):
    settings.rounds = 2
    row = fused.measure("tiny", network, (3, 8, 8), settings, torch.device("cpu"))
    assert row == {"network": "tiny", "convolutions fused": 1, "fused": 2.0, "unfused": 1.0, "fused / unfused": 2.0}
    assert [step.func for step in counted] == [network] * 4
    (images,) = counted[0].args
    assert images.shape == (3, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not network.training


def test_ratio_is_median_of_rounds(network, settings, monkeypatch):
    times = iter([1.0, 2.0, 10.0, 20.0, 3.0, 1.0])  # a slow round changes no ratio
    monkeypatch.setattr(fused, "milliseconds", lambda step: next(times))
    settings.rounds = 3
    row = fused.measure("tiny", network, (3, 8, 8), settings, torch.device("cpu"))
    assert list(row.values()) == ["tiny", 1, 3.0, 2.0, 0.5]


def test_networks_by_name(lightconv, capsys, counted):
    lightconv("bench", "what=fused", "fused.networks=[squeezenet1_1]", "fused.batch_size=1", "output=tables/mine.md")
    written = Path("tables/mine.md").read_text()
    assert written.endswith(
        "float32, channels_last, median of 5 rounds\n\n"
        "| network | convolutions fused | fused | unfused | fused / unfused |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| squeezenet1_1 | 26 | 27.0 | 1.0000 | 27.0 |\n"
    )
    assert "milliseconds of 1 images in evaluation" in capsys.readouterr().out


def test_wrong_fusion_is_not_timed(network, settings, monkeypatch):
    def wrong(model):
        report = fuse(model)
        model[1].eps = 0.1
        return report

    monkeypatch.setattr(fused, "milliseconds", lambda step: pytest.fail("timed"))
    monkeypatch.setattr(fused, "fuse", wrong)
    with pytest.raises(AssertionError, match="not close"):
        fused.measure("tiny", network, (3, 8, 8), settings, torch.device("cpu"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fused.networks=[vgg16,resnet5]"], ["no network 'resnet5'", "resnet50"]),
        (["fused.networks=lenet"], ["LeNet has no convolution to fuse"]),
        (["fused.batch_size=0"], ["batch_size=0", "at least 1"]),
        (["dtype=int8"], ["dtype=int8"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_invalid_settings(lightconv, mistake, counted, arguments, words):
    message = mistake(lightconv, "bench", "what=fused", *arguments)
    for word in words:
        assert word in message
    assert not counted
