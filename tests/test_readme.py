import lightning as L
import torch
import yaml
from helpers.support import blocks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
        self.stem = nn.ModuleDict({"downsample": nn.Sequential(nn.Conv2d(1, 1, 1))})
        self.swapped = set()

    def training_step(self, batch, index):
        self.swapped = {name for name, module in self.named_modules() if isinstance(module, lc.nn.Conv2d)}
        return nn.functional.cross_entropy(self.head(self.body(self.stem.downsample(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_ways_to_plug_in_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = DataLoader(TensorDataset(torch.randn(4, 1, 8, 8), torch.randint(0, 3, (4,))))
    model = Module()
    (code,) = blocks("Plug into any Lightning module", "python")
    exec(code, {"model": model, "data": data})
    assert "layers swapped: 4, left: 0" in capsys.readouterr().out
    assert model.swapped == {"body.0", "head.0", "stem.downsample.0"}
    # the callback took back what it did, and the line before it stays
    assert isinstance(model.body[0], lc.nn.Conv2d)
    assert type(model.head[0]) is type(model.stem.downsample[0]) is nn.Conv2d


def test_a_pretrained_network_is_fine_tuned_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("Fine-tune a pretrained network", "python")
    exec(code, {})
    printed = capsys.readouterr().out
    assert "from epoch 0: training head" in printed
    assert "from epoch 1: training last_block" in printed


def test_the_stages_shown_are_a_recipe():
    (shown,) = blocks("Fine-tune a pretrained network", "yaml")
    callback = lc.FineTuning(**yaml.safe_load(shown), blocks=[["head"], ["last"]])
    assert [stage.epoch for stage in callback.stages] == [0, 3, 6]
