"""Module with a backbone and a head, unaware of callbacks.

``python -m helpers.fine_tuned ours|lightning FILE`` trains it in two processes and writes the largest difference of
their weights.
"""

import sys
import warnings

import lightning as L
import torch
from helpers.trainers import SILENT
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc

BLOCKS = [["head"], ["backbone.4", "backbone.5"], ["backbone.0", "backbone.1"]]


class Tuned(L.LightningModule):
    """Records the modules in training mode and the learning rates at every step."""

    def __init__(self, optimizer=None, scheduler=None, interval="step"):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.build, self.scheduler, self.interval = optimizer or torch.optim.SGD, scheduler, interval
        self.training_modules, self.rates = [], []

    def training_step(self, batch, index):
        self.training_modules.append({name for name, module in self.named_modules() if module.training})
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        optimizer = self.build((p for p in self.parameters() if p.requires_grad), lr=0.1)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": self.interval}]


def images_and_labels(side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, side, side, generator=generator), torch.randint(0, 3, (24,), generator=generator)


class Data:
    """Four batches. A DataLoader would draw random numbers, and a resumed run would draw them again."""

    def __init__(self, side=8):
        self.side = side

    def __len__(self):
        return 4

    def __iter__(self):
        return zip(*(tensor.split(6) for tensor in images_and_labels(self.side)), strict=True)


def fine_tuning(kind, epoch=1, train_bn=False):
    """Return lightconv's or Lightning's callback that trains the head and, from an epoch on, everything."""
    if kind == "lightning":
        return BackboneFinetuning(unfreeze_backbone_at_epoch=epoch, train_bn=train_bn)
    everything = {"epoch": epoch, "train": "all"}
    return lc.FineTuning([{"epoch": 0, "train": "head"}, everything] if epoch else [everything], blocks=BLOCKS)


class Difference(L.Callback):
    """Writes the largest difference between the weights of two processes when training ends."""

    def on_train_end(self, trainer, pl_module):
        weights = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        everyone = pl_module.all_gather(weights)
        if trainer.is_global_zero:
            torch.save((everyone[0] - everyone[1]).abs().max(), sys.argv[2])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    callbacks = [fine_tuning(sys.argv[1]), Difference()]
    loader = DataLoader(TensorDataset(*images_and_labels()), batch_size=3)
    L.Trainer(max_epochs=3, devices=2, strategy="ddp", callbacks=callbacks, **SILENT).fit(Tuned(), loader)
