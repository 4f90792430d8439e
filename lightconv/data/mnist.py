"""MNIST and Fashion-MNIST out of their idx files, gzipped or not."""

import gzip
import math
import struct
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor

from lightconv.data.base import ImageData, Split, Stage, split_off
from lightconv.errors import InputError

_LARGEST_AXES = 8  # images have 3, labels 1
_LARGEST_RATIO = 1032  # bytes that a byte of gzip's deflate can stand for
_LARGEST_VALUES = 2**31  # three times the largest set in this format, EMNIST
_BLOCK = 2**24  # bytes unpacked at a time


class MNIST(ImageData):
    """Handwritten digits (LeCun, Cortes, Burges 1998): 55,000 to train, 5,000 to validate, 10,000 to test.

    Args:
        root: folder with the four idx files, gzipped or not, or torchvision's own folder around them.
        download: let torchvision download the files if they are missing.
        validation: number of training images set apart for validation, the same ones every time.
        options: arguments of `ImageData`.

    Shape:
        - splits: images (n, 1, 28, 28) uint8, labels (n,) int64.
        - batches: images (b, 1, 28, 28) float32, normalised; labels (b,) int64.

    Raises:
        InputError: When training or testing starts, if a file is missing or damaged.

    Example:
        >>> data = MNIST("datasets", batch_size=256)  # reads no file before training starts
        >>> data.image_shape, data.classes[0]
        ((1, 28, 28), '0')
    """

    classes = tuple("0123456789")
    image_shape = (1, 28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    source: ClassVar[type[torchvision.datasets.MNIST]] = torchvision.datasets.MNIST
    other_sources: ClassVar[str] = ""  # a sentence in the message about missing files

    def __init__(
        self, root: str | Path = "data", download: bool = False, validation: int = 5000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()
        self.download = download
        self.validation = validation

    @property
    def _folders(self) -> list[Path]:
        """Folders in which the idx files may lie: the root, and torchvision's own layouts."""
        return [self.root, self.root / "raw", self.root / self.source.__name__ / "raw"]

    def prepare_data(self) -> None:
        """Download the files if asked to and if they are missing."""
        if self.download and self._find("train-images-idx3-ubyte") is None:
            self.source(str(self.root), download=True)

    def load(self, stage: Stage) -> dict[str, Split]:
        """Read the training files, or the test files."""
        part = "t10k" if stage == "test" else "train"
        # (n, 28, 28) -> (n, 1, 28, 28)
        images = self._read(f"{part}-images-idx3-ubyte", axes=3).unsqueeze(1)
        labels = self._read(f"{part}-labels-idx1-ubyte", axes=1).long()
        if len(images) != len(labels):
            raise InputError(
                f"{self.root}: {len(images)} images but {len(labels)} labels: the files do not belong together"
            )
        if stage == "test":
            return {"test": (images, labels)}
        train, validation = split_off(images, labels, self.validation)
        return {"train": train, "validation": validation}

    def _find(self, name: str) -> Path | None:
        for folder in self._folders:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
        return None

    def _read(self, name: str, axes: int) -> Tensor:
        path = self._find(name)
        if path is None:
            raise InputError(
                f"{type(self).__name__}: no {name} or {name}.gz in {', '.join(map(str, self._folders))}. "
                "Set the folder of the idx files by data.root=FOLDER, or let torchvision download them by "
                f"data.download=true.{self.other_sources}"
            )
        values = read_idx(path)
        if values.ndim != axes:
            raise InputError(f"{path} has {values.ndim} axes instead of {axes}: put the file of that name there")
        return values


class FashionMNIST(MNIST):
    """Zalando's articles of clothing (Xiao, Rasul, Vollgraf 2017): a harder set in MNIST's format and sizes.

    Arguments, shapes and errors are those of `MNIST`.

    Example:
        >>> FashionMNIST("datasets").classes[9]
        'ankle boot'
    """

    classes = (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip
    mean = (0.2860,)
    std = (0.3530,)
    source = torchvision.datasets.FashionMNIST
    other_sources = " Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist."


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, MNIST's format.

    The file is two zero bytes, the type 8, the number of axes, their lengths as big-endian uint32, and the values.
    torchvision's own reader takes no gzipped file and checks no size.

    Returns:
        The values as uint8, in the shape written in the file.

    Raises:
        InputError: If the file is not of this format or incomplete.
    """
    try:
        with path.open("rb") as file:
            if path.suffix != ".gz":
                return read_values(file, path)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return read_values(unpacked, path)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Download it again; nothing has been changed or deleted."
        ) from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into the memory that is left: close other programs") from error


def read_values(file: BufferedReader | gzip.GzipFile, path: Path) -> Tensor:
    """Read shape and values; not more values than the header announces, and one to notice surplus ones."""
    start = file.read(4)
    if start[:3] != b"\0\0\x08":
        raise ValueError("it does not begin like an idx file of bytes")
    axes = start[3]
    if not 1 <= axes <= _LARGEST_AXES:
        raise ValueError(f"its header announces {axes} axes")
    shape = struct.unpack(f">{axes}I", file.read(4 * axes))
    announced = math.prod(shape)
    words = " x ".join(map(str, shape))
    if announced > min(path.stat().st_size * _LARGEST_RATIO, _LARGEST_VALUES):
        raise ValueError(f"its header announces {words} values, more than such a file can hold")
    values = bytearray()
    while block := file.read(min(_BLOCK, announced + 1 - len(values))):
        values += block
    if len(values) > announced:
        raise ValueError(f"it holds more values than {words}")
    if len(values) < announced:
        raise ValueError(f"it holds {len(values)} values instead of {words}")
    return torch.frombuffer(values, dtype=torch.uint8).view(shape)
