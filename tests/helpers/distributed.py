"""Train in two processes and write the weights: ``python -m helpers.distributed STRATEGY none|swap FILE``."""

import sys
import warnings

import lightning as L
import torch
from helpers.trainers import SILENT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_end(self):
        if self.global_rank == 0:
            swapped = sum(isinstance(module, lc.nn.Conv2d | lc.nn.MaxPool2d) for module in self.modules())
            torch.save({**self.state_dict(), "swapped": swapped}, sys.argv[3])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    L.seed_everything(0, verbose=False)
    images, labels = torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))
    L.Trainer(
        max_epochs=2,
        devices=2,
        strategy=sys.argv[1],
        callbacks=[lc.KernelSwap()] if sys.argv[2] == "swap" else [],
        **SILENT,
    ).fit(Plain(), DataLoader(TensorDataset(images, labels), batch_size=4))
