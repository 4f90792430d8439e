"""MNIST and Fashion-MNIST out of their idx files, gzipped or not."""

import gzip
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from torch import Tensor

from lightconv.data.base import ImageData, Split, split_off
from lightconv.errors import InputError


class MNIST(ImageData):
    """Handwritten digits (LeCun, Cortes, Burges 1998): 55,000 to train, 5,000 to validate, 10,000 to test.

    Args:
        root: a folder with the four idx files, gzipped or not, or where torchvision put or shall put them.
        download: let torchvision fetch the files if they are not there.
        validation: images of the training part set apart, the same ones every time.
        options: ImageData's arguments.

    Raises:
        InputError: when training or testing starts, if a file is missing or damaged.
    """

    classes = tuple("0123456789")
    image_shape = (1, 28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    source: ClassVar[type[torchvision.datasets.MNIST]] = torchvision.datasets.MNIST
    elsewhere: ClassVar[str] = ""

    def __init__(
        self, root: str | Path = "data", download: bool = False, validation: int = 5000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.download, self.validation = Path(root).expanduser(), download, validation

    def prepare_data(self) -> None:
        """Download, if asked to and if the files are not there."""
        if self.download and self._find("train-images-idx3-ubyte") is None:
            self.source(str(self.root), download=True)

    def load(self, stage: str) -> dict[str, Split]:
        """Read the training files, or the test files."""
        part = "t10k" if stage == "test" else "train"
        images = self._read(f"{part}-images-idx3-ubyte").unsqueeze(1)
        labels = self._read(f"{part}-labels-idx1-ubyte").long()
        if len(images) != len(labels):
            raise InputError(
                f"{self.root}: {len(images)} images but {len(labels)} labels: the files do not belong together"
            )
        if stage == "test":
            return {"test": (images, labels)}
        train, validation = split_off(images, labels, self.validation)
        return {"train": train, "validation": validation}

    def _find(self, name: str) -> Path | None:
        folders = [self.root, self.root / "raw", self.root / self.source.__name__ / "raw"]
        return next((p for folder in folders for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)

    def _read(self, name: str) -> Tensor:
        path = self._find(name)
        if path is None:
            raise InputError(
                f"{type(self).__name__}: no {name} or {name}.gz in {self.root}, {self.root / 'raw'} or "
                f"{self.root / self.source.__name__ / 'raw'}. Give the folder that holds the idx files as "
                f"data.root=FOLDER, or let torchvision fetch them with data.download=true{self.elsewhere}."
            )
        return read_idx(path)


class FashionMNIST(MNIST):
    """Zalando's articles of clothing (Xiao, Rasul, Vollgraf 2017): a harder set in MNIST's format."""

    classes = (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip
    mean = (0.2860,)
    std = (0.3530,)
    source = torchvision.datasets.FashionMNIST
    elsewhere = ". Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist"


def read_idx(path: Path) -> Tensor:
    """Read unsigned bytes in MNIST's idx format: two zeros, type 8, the number of axes, their lengths, the values.

    torchvision's own reader takes no gzipped file and checks no size.

    Raises:
        InputError: if the file is not that, or not whole.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        axes = content[3]
        shape = np.frombuffer(content, ">u4", count=axes, offset=4).tolist()
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an idx file of bytes")
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
        if values.size != np.prod(shape):
            raise ValueError(f"it holds {values.size} values where {' x '.join(map(str, shape))} are announced")
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged: {error}. Fetch it again; nothing has been changed or deleted.") from error
    return torch.from_numpy(values.reshape(shape).copy())
