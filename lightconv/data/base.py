"""What all small image sets have in common: splits in memory, normalisation, batches for Lightning."""

from collections.abc import Callable
from typing import ClassVar

import lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightconv.data.batches import Batches
from lightconv.errors import InputError

# the sizes of different splits differ, so none is given a name
Images = UInt8[Tensor, "_ _ _ _"]
Labels = Int64[Tensor, " _"]
Split = tuple[Images, Labels]


class ImageData(L.LightningDataModule):
    """A set of small images with a fixed train, validation and test split, held in memory as uint8.

    Subclasses say what the images are and implement ``load``. The test part is first read when testing starts.

    Args:
        batch_size: images a training batch.
        augmentation: varies training images, called with (images in 0..1, generator).
        seed: of the training order and of the augmentation; the splits do not depend on it.

    Attributes:
        classes: names of the classes in the order of their labels.
        image_shape: (channels, height, width).
        mean: of each channel over the training images, in 0..1.
        deviation: standard deviation of each channel, likewise.
    """

    classes: ClassVar[tuple[str, ...]]
    image_shape: ClassVar[tuple[int, int, int]]
    mean: ClassVar[tuple[float, ...]]
    deviation: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        batch_size: int = 64,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: a batch needs at least one image")
        self.batch_size, self.augmentation, self.seed = batch_size, augmentation, seed
        self._splits: dict[str, Split] = {}
        self._training: Batches | None = None
        self._position: dict[str, int] = {}

    def load(self, stage: str) -> dict[str, Split]:
        """Read images and labels.

        Args:
            stage: "fit" or "test".

        Returns:
            The splits "train" and "validation" for "fit", "test" for "test".
        """
        raise NotImplementedError

    def split(self, name: str) -> Split:
        """Images and labels of "train", "validation" or "test", read on first use."""
        if name not in self._splits:
            self._splits.update(self.load("test" if name == "test" else "fit"))
        return self._splits[name]

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that what is missing is missed before anything starts."""
        for name in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            self.split(name)

    def normalize(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Shift and scale channels in 0..1 to mean 0 and deviation 1."""
        mean, deviation = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (images - mean) / deviation

    def train_dataloader(self) -> Batches:
        """Shuffled, augmented batches."""
        trainer = self.trainer
        self._training = self._batches(
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
        return self._batches("validation")

    def test_dataloader(self) -> Batches:
        """Batches in order."""
        return self._batches("test")

    def predict_dataloader(self) -> Batches:
        """Batches in order."""
        return self._batches("test")

    def _batches(
        self, name: str, augment: bool = False, shuffle: bool = False, epoch: Callable[[], int] | None = None
    ) -> Batches:
        augmentation = self.augmentation if augment else None

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            scaled = images.float() / 255
            return self.normalize(augmentation(scaled, generator) if augmentation else scaled)

        trainer = self.trainer
        return Batches(
            *self.split(name),
            batch_size=self.batch_size if augment else max(self.batch_size, 512),  # no gradients to hold
            transform=transform,
            shuffle=shuffle,
            seed=self.seed,
            epoch=epoch,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=trainer.strategy.root_device if trainer else "cpu",
        )


def split_off(images: Images, labels: Labels, count: int) -> tuple[Split, Split]:
    """Split the same stratified sample of ``count`` images off, whatever the seed of the run.

    Returns:
        What is left, and the sample.

    Raises:
        InputError: if there are too few images for one of each class on both sides.
    """
    try:
        left, sample = train_test_split(range(len(labels)), test_size=count, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"cannot set {count} of {len(labels)} images apart: {error}") from error
    return (images[left], labels[left]), (images[sample], labels[sample])
