"""Time of an epoch of loading and of training, by lightconv and by hand.

Each loader and each training runs two epochs. The second is timed: the first also builds, compiles and allocates.
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

EPOCHS = 2  # a warm-up epoch and a timed one


class Sized(ImageData):
    """Data with a chosen number of training images: the training part repeated or cut.

    Args:
        data: data to take images from.
        count: number of training images.
    """

    def __init__(self, data: ImageData, count: int) -> None:
        super().__init__(data.batch_size, seed=data.seed)
        self.data = data
        self.count = count
        self.image_shape = data.image_shape

    def load(self, stage: str) -> dict[str, Split]:
        """Take the training images in their order, again and again."""
        images, labels = self.data.split("train")
        chosen = torch.arange(self.count) % len(labels)
        return {"train": (images[chosen], labels[chosen]), "validation": self.data.split("validation")}

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as the data do."""
        return self.data.normalize(images)


def build_trainer(*callbacks: L.Callback) -> L.Trainer:
    """Build a Trainer for training alone: no validation, logs, checkpoints or progress bar."""
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
    """Return Lightning's default device. Every side uses it."""
    return build_trainer().strategy.root_device


# ------------------------------------------------------------------------------------------------------- loading


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images loaded one by one through torchvision's transforms.

    The images are arrays: torchvision takes longer for PIL images.

    Args:
        data: training images.
    """

    def __init__(self, data: Sized) -> None:
        images, labels = data.split("train")
        # (n, c, h, w) -> (n, h, w, c)
        self.images = images[:].permute(0, 2, 3, 1).numpy()
        self.labels = labels.tolist()
        self.transform = Compose([ToTensor(), Normalize(data.data.mean, data.data.std)])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self.transform(self.images[index]), self.labels[index]


class Indexed:
    """Shuffled batches of images stored normalised on the device: the least work of any loader.

    Args:
        data: training images.
    """

    def __init__(self, data: Sized) -> None:
        images, labels = data.split("train")
        self.images = data.normalize(images[:].float() / 255).to(device())
        self.labels = labels.to(device())
        self.batch_size = data.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch in a new order."""
        for chosen in torch.randperm(len(self.labels), device=self.labels.device).split(self.batch_size):
            yield self.images[chosen], self.labels[chosen]


def lightconv_loader(config: DictConfig, data: Sized) -> Iterable[Any]:
    """Build the loader of lightconv.data."""
    loader = Sized(data.data, data.count).train_dataloader()
    loader.device = device()  # without a Trainer, nobody sets it
    return loader


def torchvision_loader(config: DictConfig, data: Sized) -> Iterable[Any]:
    """Build torch's DataLoader of torchvision's transforms."""
    return DataLoader(PerImage(data), batch_size=data.batch_size, shuffle=True, num_workers=config.num_workers)


LOADERS: dict[str, Callable[[DictConfig, Sized], Iterable[Any]]] = {
    "lightconv.data": lightconv_loader,
    "DataLoader of transforms": torchvision_loader,
    "whole batches": lambda config, data: Indexed(data),
}


def loading_seconds(name: str, config: DictConfig, data: Sized) -> float:
    """Return the seconds of an epoch without training: batches only move to the device.

    Args:
        name: one of `LOADERS`.
        config: settings of conf/bench.yaml.
        data: training images.
    """
    loader = LOADERS[name](config, data)
    target = device()
    for _ in range(EPOCHS):
        start = clock()
        for images, labels in loader:
            images.to(target)
            labels.to(target)
    return clock() - start


# ------------------------------------------------------------------------------------------------------ training


class Trained(NamedTuple):
    """A network after its training.

    Attributes:
        seconds: time of the last epoch.
        model: trained network.
    """

    seconds: float
    model: Module


class Stopwatch(L.Callback):
    """Callback with the time of the last epoch, up to the last hook of the training."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again."""
        self._start = clock()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds = clock() - self._start


class ByHand(L.LightningModule):
    """A classifier in the style of Lightning's tutorials.

    Args:
        model: network.
        optimizer: function that builds the optimizer from parameters.
    """

    def __init__(self, model: Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; log the means of loss and accuracy over the epoch."""
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


def train_by_lightconv(config: DictConfig, data: Sized) -> Trained:
    """Train with the task, the data and the callbacks of `lightconv train`."""
    torch.manual_seed(config.seed)
    task = build_task(config)
    watch = Stopwatch()
    build_trainer(watch, RandomState(), GracefulStop()).fit(task, data)
    return Trained(watch.seconds, task.model)


def train_by_lightning(config: DictConfig, data: Sized) -> Trained:
    """Train a module in the style of Lightning's tutorials from torch's DataLoader."""
    task = ByHand(_network(config, TorchBlock), instantiate(config.optimizer))
    watch = Stopwatch()
    build_trainer(watch).fit(task, torchvision_loader(config, data))
    return Trained(watch.seconds, task.model)


def train_by_loop(config: DictConfig, data: Sized, block: type[Module]) -> Trained:
    """Train in a plain loop of PyTorch from images on the device."""
    model = _network(config, block).to(device())
    batches = Indexed(data)
    optimizer = instantiate(config.optimizer)(model.parameters())
    for _ in range(EPOCHS):
        start = clock()
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    return Trained(clock() - start, model)


def _network(config: DictConfig, block: type[Module]) -> Module:
    # the same seed for every side, so that all start from the same parameters
    torch.manual_seed(config.seed)
    return instantiate(config.model, block=block).to(**tensor_format(config))


TRAININGS: dict[str, Callable[[DictConfig, Sized], Trained]] = {
    "lightconv": train_by_lightconv,
    "Lightning + DataLoader": train_by_lightning,
    "PyTorch loop": partial(train_by_loop, block=TorchBlock),
    "PyTorch loop, lightconv.nn": partial(train_by_loop, block=ConvBlock),
}


def training_seconds(name: str, config: DictConfig, data: Sized) -> float:
    """Return the seconds of an epoch of training.

    Args:
        name: one of `TRAININGS`.
        config: settings of conf/bench.yaml.
        data: training images.
    """
    return TRAININGS[name](config, data).seconds
