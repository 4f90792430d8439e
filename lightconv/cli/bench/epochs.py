"""An epoch of loading and of training, by lightconv and as one writes it by hand.

Each loader and each training runs two epochs, of which the second is timed: what is made, compiled or allocated once
lies before it.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from lightconv.callbacks import GracefulStop, RandomState
from lightconv.cli.bench.layers import TorchBlock
from lightconv.cli.bench.report import clock
from lightconv.cli.settings import tensor_format
from lightconv.data import ImageData
from lightconv.data.base import Split
from lightconv.nn import ConvBlock
from lightconv.runs.build import build_task, instantiate

EPOCHS = 2  # a warm-up, and the one that is timed


class Sized(ImageData):
    """A set whose training part is repeated, or cut, to a number of images."""

    def __init__(self, data: ImageData, count: int) -> None:
        super().__init__(data.batch_size, seed=data.seed)
        self.data, self.count, self.image_shape = data, count, data.image_shape

    def load(self, stage: str) -> dict[str, Split]:
        """Take the training images from the first on, again and again."""
        images, labels = self.data.split("train")
        chosen = torch.arange(self.count) % len(labels)
        return {"train": (images[chosen], labels[chosen]), "validation": self.data.split("validation")}

    def normalize(self, images: Tensor) -> Tensor:
        """Shift and scale as the set itself does."""
        return self.data.normalize(images)


def trainer(*callbacks: L.Callback) -> L.Trainer:
    """The Trainer of every side that has one: nothing beside the training."""
    return L.Trainer(
        max_epochs=EPOCHS,
        devices=1,
        limit_val_batches=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@cache
def device() -> torch.device:
    """Where Lightning trains by itself, and so everybody here."""
    return trainer().strategy.root_device


# ------------------------------------------------------------------------------------------------------- loading


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images one by one through torchvision's transforms; from arrays, since out of PIL images they are slower yet."""

    def __init__(self, data: Sized) -> None:
        images, labels = data.split("train")
        self.images, self.labels = images[:].permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = Compose([ToTensor(), Normalize(data.data.mean, data.data.std)])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and its label."""
        return self.transform(self.images[index]), self.labels[index]


class Indexed:
    """Shuffled batches of images that lie normalised on the device: the least that loading can be."""

    def __init__(self, data: Sized) -> None:
        images, labels = data.split("train")
        self.images, self.labels = data.normalize(images[:].float() / 255).to(device()), labels.to(device())
        self.batch_size = data.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin an epoch in a new order."""
        for chosen in torch.randperm(len(self.labels), device=self.labels.device).split(self.batch_size):
            yield self.images[chosen], self.labels[chosen]


def _lightconv_loader(config: DictConfig, data: Sized) -> Iterable[Any]:
    loader = Sized(data.data, data.count).train_dataloader()
    loader.device = device()
    return loader


def _torchvision_loader(config: DictConfig, data: Sized) -> Iterable[Any]:
    return DataLoader(PerImage(data), batch_size=data.batch_size, shuffle=True, num_workers=config.num_workers)


LOADERS: dict[str, Callable[[DictConfig, Sized], Iterable[Any]]] = {
    "lightconv.data": _lightconv_loader,
    "DataLoader of transforms": _torchvision_loader,
    "whole batches": lambda config, data: Indexed(data),
}


def loading_seconds(name: str, config: DictConfig, data: Sized) -> float:
    """Seconds of an epoch in which a loader's batches get to the device and nothing else happens."""
    loader, target = LOADERS[name](config, data), device()
    for _ in range(EPOCHS):
        started = clock()
        for images, labels in loader:
            images.to(target)
            labels.to(target)
    return clock() - started


# ------------------------------------------------------------------------------------------------------ training


class Trained(NamedTuple):
    """Seconds of the last epoch, and the network after it."""

    seconds: float
    model: Module


class Stopwatch(L.Callback):
    """Time the last epoch of a training, up to its last hook."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start again."""
        self._started = clock()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        self.seconds = clock() - self._started


class ByHand(L.LightningModule):
    """A classifier as Lightning's tutorials write it."""

    def __init__(self, model: Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; log it, and the accuracy, as means over the epoch."""
        images, labels = batch
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return self.optimizer(self.parameters())


def _lightconv(config: DictConfig, data: Sized) -> Trained:
    torch.manual_seed(config.seed)
    task, watch = build_task(config), Stopwatch()
    trainer(watch, RandomState(), GracefulStop()).fit(task, data)  # the callbacks that `lightconv train` brings
    return Trained(watch.seconds, task.model)


def _lightning(config: DictConfig, data: Sized) -> Trained:
    task, watch = ByHand(_network(config, TorchBlock), instantiate(config.optimizer)), Stopwatch()
    trainer(watch).fit(task, _torchvision_loader(config, data))
    return Trained(watch.seconds, task.model)


def _loop(config: DictConfig, data: Sized, block: type[Module]) -> Trained:
    model, batches = _network(config, block).to(device()), Indexed(data)
    optimizer = instantiate(config.optimizer)(model.parameters())
    for _ in range(EPOCHS):
        started = clock()
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    return Trained(clock() - started, model)


def _network(config: DictConfig, block: type[Module]) -> Module:
    torch.manual_seed(config.seed)
    return instantiate(config.model, block=block).to(**tensor_format(config))


TRAININGS: dict[str, Callable[[DictConfig, Sized], Trained]] = {
    "lightconv": _lightconv,
    "Lightning + DataLoader": _lightning,
    "PyTorch loop": partial(_loop, block=TorchBlock),
    "PyTorch loop, lightconv.nn": partial(_loop, block=ConvBlock),
}


def training_seconds(name: str, config: DictConfig, data: Sized) -> float:
    """Seconds of an epoch of training."""
    return TRAININGS[name](config, data).seconds
