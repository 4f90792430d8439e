"""CIFAR-10 as torchvision reads it."""

from pathlib import Path
from typing import Any

import torch
import torchvision

from lightconv.data.base import ImageData, Split, split_off
from lightconv.errors import InputError

_FOLDER = torchvision.datasets.CIFAR10.base_folder


class CIFAR10(ImageData):
    """Small colour photographs (Krizhevsky 2009): 45,000 to train, 5,000 to validate, 10,000 to test.

    Args:
        root: the folder cifar-10-batches-py, or the one that holds it.
        download: let torchvision fetch the set if it is not there.
        validation: images of the training part set apart, the same ones every time.
        options: ImageData's arguments.

    Raises:
        InputError: when training or testing starts, if a file is missing or damaged.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    image_shape = (3, 32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self, root: str | Path = "data", download: bool = False, validation: int = 5000, **options: Any
    ) -> None:
        super().__init__(**options)
        root = Path(root).expanduser()
        self.root = root.parent if root.name == _FOLDER else root
        self.download, self.validation = download, validation

    def prepare_data(self) -> None:
        """Download, if asked to and if the set is not there."""
        if self.download:
            torchvision.datasets.CIFAR10(str(self.root), download=True)

    def load(self, stage: str) -> dict[str, Split]:
        """Read the five training batches, or the test batch."""
        try:
            data = torchvision.datasets.CIFAR10(str(self.root), train=stage != "test")
        except RuntimeError as error:
            raise InputError(
                f"CIFAR10: {self.root / _FOLDER} is missing, incomplete or damaged (torchvision checks every file). "
                "Give its folder as data.root=FOLDER, or let torchvision fetch it with data.download=true."
            ) from error
        images, labels = (
            torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(data.targets),
        )
        if stage == "test":
            return {"test": (images, labels)}
        train, validation = split_off(images, labels, self.validation)
        return {"train": train, "validation": validation}
