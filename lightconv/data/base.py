"""What all small image sets have in common: splits in memory, normalisation, batches for Lightning."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from lightconv.data.batches import Batches, Mix
from lightconv.data.stored import StoredImages
from lightconv.errors import InputError
from lightconv.preprocessing import Preprocessing

# the sizes of different splits differ, so none is given a name
InMemory = UInt8[Tensor, "_ _ _ _"]
Images = InMemory | StoredImages
Labels = Int64[Tensor, " _"]
Split = tuple[Images, Labels]


class ImageData(L.LightningDataModule):
    """A set of images as uint8 with a fixed train, validation and test split, held in memory or stored elsewhere.

    Subclasses say what the images are and implement ``load``. The test part is first read when testing starts, where
    it can be read alone.

    Args:
        batch_size: images a training batch.
        augmentation: varies training images, called with (images in 0..1, generator).
        seed: of the training order and of the augmentation; the splits do not depend on it.
        preprocessing: the size, mean and std that pretrained weights expect, in place of the set's own.
        training_images: train on so many, each class in proportion, the same ones every time; None for all.
        mixing: mixes what has been augmented and normalised, called with (images, one-hot labels, generator); training
            labels then are shares of (n, classes).

    Attributes:
        classes: names of the classes in the order of their labels.
        image_shape: (channels, height, width) of a batch's images.
        mean: of each channel over the training images, in 0..1.
        std: standard std of each channel, likewise.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 64,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
        training_images: int | None = None,
        mixing: Mix | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: a batch needs at least one image")
        self.batch_size, self.augmentation, self.seed = batch_size, augmentation, seed
        self.training_images, self.mixing = training_images, mixing
        if preprocessing:
            side = preprocessing.image_size
            self.mean, self.std = preprocessing.mean, preprocessing.std
            self.image_shape = (max(self.image_shape[0], len(self.mean)), side, side)
        self._splits: dict[str, Split] = {}
        self._training: Batches | None = None
        self._features: Mapping[str, Tensor] = {}
        self._loaders: list[tuple[str, Batches]] = []
        self._position: dict[str, int] = {}

    def load(self, stage: str) -> dict[str, Split]:
        """Read images and labels.

        Args:
            stage: "fit" or "test".

        Returns:
            The splits "train" and "validation" for "fit", and "test" too if it was read with them; "test" for "test".
        """
        raise NotImplementedError

    def split(self, name: str) -> Split:
        """Images and labels of "train", "validation" or "test", read on first use."""
        if name not in self._splits:
            self._splits.update(self.load("test" if name == "test" else "fit"))
            if name != "test" and self.training_images is not None:
                self._splits["train"] = sample(*self._splits["train"], self.training_images)
        return self._splits[name]

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that what is missing is missed before anything starts."""
        for name in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            self.split(name)

    def resize(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
        """Bring images to the height and width of ``image_shape``, where they have another."""
        size = self.image_shape[1:]
        if images.shape[2:] == size:
            return images
        return interpolate(images, size, mode="bilinear", antialias=True)

    def normalize(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ h w"]:
        """Shift and scale channels in 0..1 to mean 0 and std 1, repeating a grey one for each mean."""
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def train_dataloader(self) -> Batches:
        """Shuffled, augmented batches."""
        trainer = self.trainer
        self._training = self._loader(
            "train",
            augment=True,
            # Lightning's overfit_batches wants the same batches every epoch
            shuffle=not getattr(trainer, "overfit_batches", 0),
            epoch=(lambda: trainer.current_epoch) if trainer else None,
        )
        if self._position:
            self._training.load_state_dict(self._position)
        return self._training

    def state_dict(self) -> dict[str, int]:
        """Where training is in its epoch, for Lightning's checkpoints.

        Lightning stores the state of loaders itself, but does not restore it where an optimizer or scheduler has asked
        for the length of the run.
        """
        return self._training.state_dict() if self._training else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader go on from there."""
        self._position = state_dict

    def val_dataloader(self) -> Batches:
        """Batches in order."""
        return self._loader("validation")

    def test_dataloader(self) -> Batches:
        """Batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Batches:
        """Batches in order."""
        return self._loader("test")

    def serve(self, features: Mapping[str, Float[Tensor, "copies _ features"]]) -> None:
        """Deliver features in place of the images that they were computed from; of no split, the images again.

        Args:
            features: by split; epoch by epoch, copies take turns.
        """
        self._features = features
        for name, batches in self._loaders:
            batches.features = features.get(name)

    def ordered(self, name: str, copy: int | None = None) -> Batches:
        """All images of a split in order, as evaluation sees them, or as an augmented copy of that number."""
        batches = self._batches(name, augment=copy is not None, epoch=lambda: copy or 0)
        batches.rank, batches.world_size, batches.features = 0, 1, None
        return batches

    def _loader(self, name: str, **options: Any) -> Batches:
        batches = self._batches(name, **options)
        batches.features = self._features.get(name)
        self._loaders.append((name, batches))
        return batches

    def _batches(
        self, name: str, augment: bool = False, shuffle: bool = False, epoch: Callable[[], int] | None = None
    ) -> Batches:
        augmentation = self.augmentation if augment else None

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            scaled = self.resize(images.float() / 255)
            return self.normalize(augmentation(scaled, generator) if augmentation else scaled)

        trainer = self.trainer
        return Batches(
            *self.split(name),
            batch_size=self.batch_size if augment else self._evaluation_batch(),
            transform=transform,
            shuffle=shuffle,
            seed=self.seed,
            epoch=epoch,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=trainer.strategy.root_device if trainer else "cpu",
            mix=self.mix if augment and self.mixing else None,
        )

    def mix(
        self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"]]:
        """Mix images with each other, and their labels alike."""
        assert self.mixing is not None
        return self.mixing(images, one_hot(labels, len(self.classes)).float(), generator)

    def _evaluation_batch(self) -> int:
        # there are no gradients to hold: as many images as 512 of 32 x 32 have pixels
        _, height, width = self.image_shape
        return max(self.batch_size, min(512, 512 * 32 * 32 // (height * width)))


def sample(images: Images, labels: Labels, count: int) -> Split:
    """Take ``count`` images, each class in proportion, the same ones every time.

    Raises:
        InputError: if there are too few.
    """
    if count == len(labels):
        return images, labels
    chosen = set_apart(labels, count)[1]
    return images.only(chosen) if isinstance(images, StoredImages) else images[chosen], labels[chosen]


def split_off(images: InMemory, labels: Labels, count: int) -> tuple[tuple[InMemory, Labels], tuple[InMemory, Labels]]:
    """Split the same stratified sample of ``count`` images off, whatever the seed of the run.

    Returns:
        What is left, and the sample.

    Raises:
        InputError: if there are too few images for one of each class on both sides.
    """
    left, sample = set_apart(labels, count)
    return (images[left], labels[left]), (images[sample], labels[sample])


def set_apart(labels: Labels, count: int) -> tuple[list[int], list[int]]:
    """Choose ``count`` labels, each class in proportion, the same ones every time.

    Returns:
        The positions of those left, and of those chosen.

    Raises:
        InputError: if there are too few for one of each class on both sides.
    """
    try:
        left, chosen = train_test_split(range(len(labels)), test_size=count, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"cannot set {count} of {len(labels)} images apart: {error}") from error
    return left, chosen
