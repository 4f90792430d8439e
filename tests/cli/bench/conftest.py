import pytest
from omegaconf import OmegaConf


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setattr("lightconv.cli.tables.console.width", 200)


@pytest.fixture
def settings():
    return OmegaConf.create({"dtype": "float32", "channels_last": True, "rounds": 1})


@pytest.fixture
def tiny():
    from lightconv.cli.bench.layers import Layer  # not earlier: tests/conftest.py says whether kernels are interpreted

    return Layer("tiny block", (2, 4, 6, 6), lambda nn: nn.ConvBlock(4, 2, 3, padding=1, pool=2))
