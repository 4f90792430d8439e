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
    # not earlier: tests/conftest.py decides whether kernels are interpreted
    from lightconv.cli.bench.layers import Layer

    return Layer("tiny block", (2, 4, 6, 6), lambda nn: nn.ConvBlock(4, 2, 3, padding=1, pool=2))
