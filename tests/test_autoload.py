"""LIGHTCONV=1 with lightconv installed from its wheel, in scripts that do not import it."""

import os
import subprocess
import sys

import lightning as L
import pytest
from helpers.pages import page_blocks

import lightconv_autoload
from lightconv.errors import InputError

SCRIPT = """
import sys
import {package} as L
import torch
from torch import nn

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

options = {{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}}
trainer = L.Trainer(max_epochs=1, accelerator="cpu", **options)
with torch.profiler.profile() as profile:
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(6, 1, 8, 8), batch_size=2))
counts = {{event.key: event.count for event in profile.key_averages()}}
print(counts.get("lightconv::conv2d", 0), counts.get("lightconv::max_pool2d", 0), "lightconv" in sys.modules)
"""
FABRIC = """
import lightning as L, torch
from torch import nn
model = L.Fabric(accelerator="cpu").setup(nn.Sequential(nn.Conv2d(1, 4, 3)))
with torch.profiler.profile() as profile:
    model(torch.randn(2, 1, 8, 8))
print("lightconv::conv2d" in {event.key for event in profile.key_averages()})
"""


def run(installed, script, variable):
    """The documented command, with the kernels interpreted wherever they are asked for."""
    (installed / "their_script.py").write_text(script)
    command = next(block for block in page_blocks("docs/plug_in.md", "sh") if "LIGHTCONV=1" in block)
    environment = {
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "PYTHONPATH": str(installed),
        "PYTHONWARNINGS": "ignore",
        "TRITON_INTERPRET": "1",
        "LIGHTCONV_BACKEND": "triton",
    }
    command = command.replace("LIGHTCONV=1", variable)
    options = {"capture_output": True, "text": True, "env": environment, "cwd": installed}
    return subprocess.run(["bash", "-c", command], check=False, **options)


@pytest.mark.parametrize(
    ("variable", "printed"), [("LIGHTCONV=1", "3 3 True"), ("LIGHTCONV=0", "0 0 False"), ("", "0 0 False")]
)
def test_script(installed, variable, printed):
    result = run(installed, SCRIPT.format(package="lightning"), variable)
    assert result.stdout.splitlines()[-1:] == [printed], result.stderr


def test_pytorch_lightning_is_an_error(installed):
    result = run(installed, SCRIPT.format(package="pytorch_lightning"), "LIGHTCONV=1")
    assert "InputError: KernelSwap works with lightning's Trainer, but this one comes from pytorch_" in result.stderr


def test_fabric(installed):
    assert run(installed, FABRIC, "LIGHTCONV=1").stdout.strip() == "True"


@pytest.mark.parametrize(("value", "number"), [("", 0), ("0", 0), ("1", 1)])
def test_callbacks(monkeypatch, value, number):
    monkeypatch.setenv("LIGHTCONV", value)
    callbacks = lightconv_autoload.callbacks()
    assert len(callbacks) == number
    assert all(isinstance(callback, L.Callback) for callback in callbacks)


def test_unknown_value(monkeypatch):
    monkeypatch.setenv("LIGHTCONV", "yes")
    with pytest.raises(InputError, match="LIGHTCONV=yes is unknown: set 1 to run"):
        lightconv_autoload.callbacks()
