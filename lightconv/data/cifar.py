"""CIFAR-10 as torchvision reads it."""

from pathlib import Path
from typing import Any

import torch
import torchvision

from lightconv.data.base import ImageData, Split, Stage, split_off
from lightconv.errors import InputError

_FOLDER = torchvision.datasets.CIFAR10.base_folder


class CIFAR10(ImageData):
    """Small colour photographs (Krizhevsky 2009): 45,000 to train, 5,000 to validate, 10,000 to test.

    Args:
        root: folder cifar-10-batches-py, or the folder around it.
        download: let torchvision download the set if it is missing.
        validation: number of training images set apart for validation, the same ones every time.
        options: arguments of `ImageData`.

    Shape:
        - splits: images (n, 3, 32, 32) uint8, labels (n,) int64.
        - batches: images (b, 3, 32, 32) float32, normalised; labels (b,) int64.

    Raises:
        InputError: When training or testing starts, if a file is missing or damaged.

    Example:
        >>> data = CIFAR10("datasets", batch_size=256)  # reads no file before training starts
        >>> data.image_shape, data.classes[0]
        ((3, 32, 32), 'airplane')
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
        if root.name == _FOLDER:
            root = root.parent
        self.root = root
        self.download = download
        self.validation = validation

    def prepare_data(self) -> None:
        """Download the set if asked to and if it is missing."""
        if self.download:
            torchvision.datasets.CIFAR10(str(self.root), download=True)

    def load(self, stage: Stage) -> dict[str, Split]:
        """Read the five training batches, or the test batch."""
        try:
            data = torchvision.datasets.CIFAR10(str(self.root), train=stage != "test")
        except RuntimeError as error:
            raise InputError(
                f"CIFAR10: {self.root / _FOLDER} is missing, incomplete or damaged (torchvision checks every file). "
                "Set its folder by data.root=FOLDER, or let torchvision download it by data.download=true."
            ) from error
        # (n, 32, 32, 3) -> (n, 3, 32, 32)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(data.targets)
        if stage == "test":
            return {"test": (images, labels)}
        train, validation = split_off(images, labels, self.validation)
        return {"train": train, "validation": validation}
