"""Features of a frozen backbone, computed once instead of every epoch."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.models.weights import read_checkpoint

Features = Float[Tensor, "copies n features"]
_AT_ONCE = 256  # images that are read to be recognised


class FeatureCache:
    """Computes what a network's head sees of a set's images, and keeps it in memory or on disk.

    A file on disk belongs to the weights, the images and everything that happens to them on the way; another one of
    these, or a damaged file, and it is computed anew.

    Args:
        place: "memory", or a directory, from which features are memory-mapped.
        copies: augmented copies of each training image, which take turns epoch by epoch; None where images are not
            augmented.

    Raises:
        InputError: for no copies.
    """

    def __init__(self, place: str | Path = "memory", copies: int | None = None) -> None:
        if copies is not None and copies < 1:
            raise InputError(f"copies={copies}: give the number of augmented copies of each image, or null")
        self.directory = None if place == "memory" else Path(place).expanduser()
        self.copies = copies

    def serves(self, network: Any, data: Any) -> bool:
        """Whether features stay what they are from epoch to epoch: nothing trains that they depend on, or varies them.

        Raises:
            InputError: if the network is not Pretrained or the data are not lightconv's.
        """
        if not isinstance(network, Pretrained) or not isinstance(data, ImageData):
            raise InputError(
                "features are cached of lightconv.models.Pretrained, on data of lightconv.data given as a datamodule; "
                "for others set cache to null"
            )
        # an image that is mixed has another's label too, which features are kept without
        varied = (data.augmentation is not None and self.copies is None) or data.mixing is not None
        return network.frozen and not varied

    def features(self, trainer: L.Trainer, network: Pretrained, data: ImageData, show: bool) -> dict[str, Features]:
        """Features of the training and the validation split.

        Args:
            trainer: whose precision the network computes in.
            network: whose backbone is frozen.
            data: a set that ``serves`` allows.
            show: whether to show how far it is.
        """
        augmented = range(self.copies) if self.copies and data.augmentation else [None]
        return {
            name: torch.stack([self._split(trainer, network, data, name, copy, show) for copy in copies])
            for name, copies in (("train", augmented), ("validation", [None]))
        }

    def _split(
        self, trainer: L.Trainer, network: Pretrained, data: ImageData, name: str, copy: int | None, show: bool
    ) -> Tensor:
        if self.directory is None:
            return _computed(trainer, network, data, name, copy, show)
        self.directory.mkdir(parents=True, exist_ok=True)
        key = _key(trainer, network, data, name, copy)
        path = self.directory / f"{key[:24]}.features"
        with FileLock(f"{path}.lock"):
            stored = _stored(path, key)
            if stored is None:
                features = _computed(trainer, network, data, name, copy, show)
                fresh = path.with_suffix(".new")
                torch.save({"key": key, "digest": _digest(features), "features": features}, fresh)
                fresh.replace(path)
                stored = _stored(path, key)
        assert stored is not None
        return stored


def _computed(
    trainer: L.Trainer, network: Pretrained, data: ImageData, name: str, copy: int | None, show: bool
) -> Tensor:
    batches = data.ordered_batches(name, copy)
    what = f"features of {len(batches.labels):,} images"
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        seen = track(batches, what, len(batches), transient=True, disable=not (show and trainer.is_global_zero))
        return torch.cat([network.features(images).cpu() for images, _ in seen])


def _stored(path: Path, key: str) -> Tensor | None:
    """The features of a file, mapped into memory; None if there are none, or others, or damaged ones."""
    if not path.is_file():
        return None
    try:
        content = read_checkpoint(path, mmap=True)
        features = content["features"]
        return features if content["key"] == key and content["digest"] == _digest(features) else None
    except (InputError, KeyError, AttributeError, TypeError):
        return None


def _digest(features: Tensor) -> str:
    return hashlib.sha256(_bytes(features)).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _key(trainer: L.Trainer, network: Pretrained, data: ImageData, name: str, copy: int | None) -> str:
    key = hashlib.sha256()
    for part in _described(trainer, network, data, copy):
        key.update(part.encode() + b"\n")
    for tensor in network.backbone.state_dict().values():
        key.update(_bytes(tensor))
    images = data.split(name)[0]
    for first in range(0, len(images), _AT_ONCE):
        key.update(_bytes(images[first : first + _AT_ONCE]))
    return key.hexdigest()


def _described(trainer: L.Trainer, network: Pretrained, data: ImageData, copy: int | None) -> Iterator[str]:
    yield f"{torch.__version__} {trainer.precision} {trainer.strategy.root_device.type}"
    yield f"{network.backbone} {network.pool}"
    yield f"{data.image_shape} {data.mean} {data.std}"
    if copy is not None:
        yield f"{copy} {data.seed} {data.augmentation!r}"
