"""Images as LightningDataModules: known sets and folders of image files, delivered in whole batches."""

from lightconv.data.augmentation import Augmentation, Mixing
from lightconv.data.base import ImageData
from lightconv.data.batches import Batches
from lightconv.data.cifar import CIFAR10
from lightconv.data.digits import Digits
from lightconv.data.folder import ImageFolder
from lightconv.data.mnist import MNIST, FashionMNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "Augmentation",
    "Batches",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "Mixing",
]
