from pathlib import Path

import pytest
import torch

from lightconv.kernels import autotune


def test_error_without_gpu(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        lightconv("tune")
    error = capsys.readouterr().err
    assert "tune measures kernels on a GPU" in error
    assert "lightconv inspect" in error
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dtype=int8"], ["dtype=int8", "float16"]),
        (["batch_size=0"], ["batch_size=0", "at least 1"]),
        (["rounds=0"], ["rounds=0", "at least 1"]),
    ],
)
def test_invalid_settings(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "tune", *arguments)
    for word in words:
        assert word in message


def test_results_are_printed_and_stored(lightconv, capsys, monkeypatch, tmp_path):
    """Tune for an absent GPU with a clock that makes kernels slow."""
    from lightconv import nn
    from lightconv.analysis import layers
    from lightconv.autotune import search
    from lightconv.operators import backend

    def clock(step):
        with autotune.record() as questions:
            step()
        return 10.0 + sum(5.0 for question in questions if question.answer is True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "gpu_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend, "wants_kernels", lambda device: backend._backend != "reference")
    tune_layer = search.tune_layer
    monkeypatch.setattr(search, "tune_layer", lambda *args: tune_layer(*args, clock))
    with torch.device("meta"):
        block = layers.find_layers(torch.nn.Sequential(nn.ConvBlock(3, 8, 3, pool=2)), torch.empty(1, 3, 6, 6))
    monkeypatch.setattr("lightconv.cli.tune.network_layers", lambda *args, **wanted: block * 2)
    lightconv("tune", "rounds=1")
    printed = capsys.readouterr().out
    words = (
        "Some GPU",
        "forward+backward",
        "15.0",
        "10.0",
        "measured",
        "0, forward",
        "conv_block: torch (rule: lightconv)",
    )
    for word in words:
        assert word in printed
    (file,) = (tmp_path / "cache" / "lightconv" / "tuned").glob("*.json")
    assert "Some-GPU" in file.name


@pytest.mark.gpu
def test_tune_lenet_on_gpu(lightconv, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lightconv("tune", "batch_size=32", "rounds=1")
    assert torch.cuda.get_device_name() in capsys.readouterr().out
