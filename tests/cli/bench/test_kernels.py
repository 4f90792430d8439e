from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightconv.analysis import prediction
from lightconv.analysis.gpus import GPUS
from lightconv.cli import tables
from lightconv.cli.bench import kernels


def test_error_without_gpu(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        lightconv("bench", "what=kernels", "output=tables/mine.md")
    assert "measures on a GPU and there is none here" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """Replace compiler and clock, so that interpreted kernels on a CPU are timed by the number of their results."""
    modes = []

    def compile_nothing(module, mode):
        modes.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr("triton.testing.do_bench", lambda step, return_mode: float(len(step()) == 1))
    return modes


def test_rows_of_a_layer(tiny, settings, no_gpu_needed):
    rows = kernels.measure(tiny, settings, "cpu")
    assert [row["pass"] for row in rows] == ["forward", "forward+backward"]
    assert tables.markdown(rows) == (
        "| layer | images | pass | lightconv | torch | torch.compile | reduce-overhead | max-autotune | of roofline |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| tiny block | 2x4x6x6 | forward | 1.0000 | 1.0000 | 1.0000 | 1.0000 | 1.0000 | unknown |\n"
        # 1 is True of a single tensor, 0 of four
        "| tiny block | 2x4x6x6 | forward+backward | 0.0000 | 0.0000 | 0.0000 | 0.0000 | 0.0000 | unknown |\n"
    )
    assert no_gpu_needed == ["default", "reduce-overhead", "max-autotune"]


def test_share_of_roofline(tiny, settings, no_gpu_needed, monkeypatch):
    monkeypatch.setattr("triton.testing.do_bench", lambda step, return_mode: 0.5)
    launch = prediction.LAUNCH_SECONDS  # a layer this small takes no longer
    shares = [row["of roofline"] for row in kernels.measure(tiny, settings, "cpu", GPUS["h100"])]
    assert shares == [f"{launch * kernels_run / 0.5e-3:.0%}" for kernels_run in (1, 3)]


def test_wrong_kernel_is_not_timed(tiny, settings, monkeypatch):
    monkeypatch.setattr("triton.testing.do_bench", lambda *args, **kwargs: pytest.fail("timed"))
    wrong = tiny._replace(build=lambda nn: torch.nn.AvgPool2d(2) if hasattr(nn, "modules") else nn.MaxPool2d(2))
    with pytest.raises(AssertionError, match="tiny block"):
        kernels.measure(wrong, settings, "cpu")


def test_tf32_switches_in_title(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision="tf32"))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="ieee"))
    assert kernels._tf32() == "TF32 on for convolutions, off for matrix products"


@pytest.mark.gpu
def test_measure_on_gpu(lightconv, tiny, monkeypatch):
    monkeypatch.setattr(kernels, "LAYERS", (tiny,))
    lightconv("bench", "what=kernels", "output=tables/mine.md", "rounds=1")
    written = Path("tables/mine.md").read_text()
    assert torch.cuda.get_device_name() in written
    assert "| tiny block | 2x4x6x6 | forward+backward |" in written
    assert Path("tables/mine.png").is_file()
