"""Base of all image sets: fixed splits, normalisation, batches for Lightning."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch.trainer.states import TrainerStatus
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from lightconv.data.batches import Batches, Mix
from lightconv.data.stored import StoredImages
from lightconv.errors import InputError
from lightconv.preprocessing import Preprocessing

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
Stage = Literal["fit", "test"]

# (n, c, h, w); the axes have no names because the sizes of different splits differ
InMemory = UInt8[Tensor, "_ _ _ _"]
Images = InMemory | StoredImages
Labels = Int64[Tensor, " _"]
Split = tuple[Images, Labels]

# evaluation keeps no gradients: as many images per batch as 512 of 32 x 32 pixels take
_EVALUATION_IMAGES = 512
_EVALUATION_PIXELS = 512 * 32 * 32


class ImageData(L.LightningDataModule):
    """Base class of image sets: uint8 images with a fixed train, validation and test split.

    Subclasses set the class attributes listed below and implement ``load``. Images are held in memory as one tensor, or
    elsewhere as `StoredImages`. A test split in files of its own is first read when testing starts.

    Args:
        batch_size: images per training batch.
        augmentation: random variation of training images: a function of (images in 0..1, generator).
        seed: seed of the training order and of the augmentation; the splits do not depend on it.
        preprocessing: image size, mean and std of pretrained weights, used instead of the set's own.
        training_images: number of training images, each class in proportion, the same ones every time; None for all.
        mixing: random mixture of augmented, normalised training images: a function of (images, one-hot labels,
            generator).

    Attributes:
        classes: class names in the order of their labels.
        image_shape: (channels, height, width) of the images in a batch.
        mean: mean per channel over the training images, in 0..1.
        std: standard deviation per channel over the training images, in 0..1.
        joins_last_image: True to add the image of a last training batch of one image to the batch before.

    Shape:
        - splits: images (n, c, h, w) uint8, labels (n,) int64.
        - batches: images (b, channels, height, width) float32, normalised; labels (b,) int64. With ``mixing``, labels
          of training batches are class shares, (b, classes) float32.

    Raises:
        InputError: If ``batch_size`` is below 1.

    Example:
        >>> import torch
        >>> class Noise(ImageData):
        ...     classes = ("first", "second")
        ...     image_shape = (1, 8, 8)
        ...     mean = (0.5,)
        ...     std = (0.29,)
        ...
        ...     def load(self, stage):
        ...         images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
        ...         return dict.fromkeys(("train", "validation", "test"), (images, torch.arange(6) % 2))
        >>> images, labels = next(iter(Noise(batch_size=4).train_dataloader()))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([4, 1, 8, 8]), torch.float32, torch.Size([4]))
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    joins_last_image: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Accept the class attribute ``deviation``, the former name of ``std``."""
        super().__init_subclass__(**options)
        if "deviation" in cls.__dict__:
            _warn_about_deviation(cls.__name__)
            cls.std = cls.__dict__["deviation"]
            del cls.deviation  # the property below takes its place

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
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.training_images = training_images
        self.mixing = mixing
        if preprocessing:
            self.mean = preprocessing.mean
            self.std = preprocessing.std
            # grey images are repeated for every mean
            channels = max(self.image_shape[0], len(self.mean))
            self.image_shape = (channels, preprocessing.image_size, preprocessing.image_size)
        self._splits: dict[str, Split] = {}
        self._forget_run()

    def _forget_run(self) -> None:
        """Start without the state of a former run; only the images stay."""
        self._training: Batches | None = None
        self._features: Mapping[str, Tensor] = {}
        self._loaders: list[tuple[str, Batches]] = []
        self._position: dict[str, int] = {}

    @property
    def deviation(self) -> tuple[float, ...]:
        """Deprecated name of ``std``."""
        _warn_about_deviation(type(self).__name__)
        return self.std

    @deviation.setter
    def deviation(self, values: tuple[float, ...]) -> None:
        _warn_about_deviation(type(self).__name__)
        self.std = values

    def load(self, stage: Stage) -> dict[str, Split]:
        """Read images and labels.

        Args:
            stage: "fit" or "test".

        Returns:
            Splits by name: "train" and "validation" for "fit", and "test" too if it was read along with them; "test"
            for "test".
        """
        raise NotImplementedError

    def split(self, name: SplitName) -> Split:
        """Return images and labels of a split; read them on first use."""
        if name in self._splits:
            return self._splits[name]
        if name == "test":
            self._splits.update(self.load("test"))
        else:
            self._splits.update(self.load("fit"))
            if self.training_images is not None:
                images, labels = self._splits["train"]
                try:
                    self._splits["train"] = stratified_sample(images, labels, self.training_images)
                except InputError as error:
                    raise InputError(f"training_images={self.training_images}: {error}") from error
        return self._splits[name]

    def setup(self, stage: str) -> None:
        """Read the splits of a stage. Missing or damaged files raise here, before training or testing starts.

        Training starts without the state of a former run: Lightning restores a checkpoint's state after this hook.
        """
        if stage == "fit":
            self._forget_run()
            self.split("train")
        if stage in {"fit", "validate"}:
            self.split("validation")
        else:
            self.split("test")

    def resize(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
        """Resize images to the height and width of ``image_shape``, bilinearly with antialiasing."""
        size = self.image_shape[1:]
        if images.shape[2:] == size:
            return images
        return interpolate(images, size, mode="bilinear", antialias=True)

    def normalize(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ h w"]:
        """Shift and scale channels in 0..1 to mean 0 and std 1.

        Shape:
            - images: (n, c, h, w); returned: (n, len(mean), h, w). A grey image is repeated for each mean.
        """
        # (channels,) -> (channels, 1, 1), which broadcasts over (n, c, h, w)
        mean = images.new_tensor(self.mean).view(-1, 1, 1)
        std = images.new_tensor(self.std).view(-1, 1, 1)
        return (images - mean) / std

    def train_dataloader(self) -> Batches:
        """Return shuffled, augmented batches."""
        trainer = self._running_trainer
        options: dict[str, Any] = {"shuffle": True}
        if trainer is not None:
            # Lightning's overfit_batches repeats the same batches every epoch
            options["shuffle"] = not getattr(trainer, "overfit_batches", 0)
            options["epoch"] = lambda: trainer.current_epoch
        self._training = self._loader("train", augment=True, **options)
        self._training.join_last = self.joins_last_image
        if trainer is not None and self._position:
            self._training.load_state_dict(self._position)
        return self._training

    @property
    def _running_trainer(self) -> L.Trainer | None:
        # a Trainer stays attached when its run is over: its epoch stands still then
        trainer = self.trainer
        is_running = trainer is not None and trainer.state.status == TrainerStatus.RUNNING
        return trainer if is_running else None

    def state_dict(self) -> dict[str, int]:
        """Return the position of training in its epoch, for Lightning's checkpoints.

        Lightning stores the state of loaders itself, but does not restore it if an optimizer or scheduler has asked for
        the length of the run.
        """
        if self._training is None:
            return {}
        return self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue the next training loader from this position."""
        self._position = state_dict

    def val_dataloader(self) -> Batches:
        """Return validation batches in order."""
        return self._loader("validation")

    def test_dataloader(self) -> Batches:
        """Return test batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Batches:
        """Return test batches in order."""
        return self._loader("test")

    def serve(self, features: Mapping[str, Float[Tensor, "copies _ features"]]) -> None:
        """Deliver features instead of the images they were computed from; an empty mapping restores the images.

        Args:
            features: features by split name; copies take turns epoch by epoch.
        """
        self._features = features
        for name, batches in self._loaders:
            batches.features = features.get(name)

    def ordered_batches(self, name: SplitName, copy: int | None = None) -> Batches:
        """Return all images of a split in order, on every process.

        Args:
            name: name of the split.
            copy: number of an augmented copy; None for images without augmentation, as in evaluation.
        """
        batches = self._batches(name, augment=copy is not None, epoch=lambda: copy or 0)
        batches.rank = 0
        batches.world_size = 1
        batches.features = None
        return batches

    def _loader(self, name: SplitName, **options: Any) -> Batches:
        batches = self._batches(name, **options)
        batches.features = self._features.get(name)
        self._loaders.append((name, batches))
        return batches

    def _batches(
        self,
        name: SplitName,
        augment: bool = False,
        shuffle: bool = False,
        epoch: Callable[[], int] | None = None,
    ) -> Batches:
        augmentation = self.augmentation if augment else None

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            # (b, c, h, w) uint8 -> (b, channels, height, width) float32
            images = self.resize(images.float() / 255)
            if augmentation is not None:
                images = augmentation(images, generator)
            return self.normalize(images)

        images, labels = self.split(name)
        batch_size = self.batch_size
        if not augment:
            _, height, width = self.image_shape
            batch_size = max(batch_size, min(_EVALUATION_IMAGES, _EVALUATION_PIXELS // (height * width)))
        batches = Batches(
            images,
            labels,
            batch_size=batch_size,
            transform=transform,
            shuffle=shuffle,
            seed=self.seed,
            epoch=epoch,
            mix=self.mix if augment and self.mixing else None,
        )
        trainer = self._running_trainer
        if trainer is not None:
            batches.rank = trainer.global_rank
            batches.world_size = trainer.world_size
            batches.device = torch.device(trainer.strategy.root_device)
        return batches

    def mix(
        self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"]]:
        """Mix images of a batch with each other, and their labels in the same shares."""
        assert self.mixing is not None
        # (n,) int64 -> (n, classes) float32
        shares = one_hot(labels, len(self.classes)).float()
        return self.mixing(images, shares, generator)


def _warn_about_deviation(owner: str) -> None:
    message = f"{owner}.deviation is deprecated: it is called std"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def stratified_sample(images: Images, labels: Labels, count: int) -> Split:
    """Return ``count`` images and their labels, each class in proportion, the same ones every time.

    Raises:
        InputError: If there are fewer than ``count`` images.
    """
    if count == len(labels):
        return images, labels
    _, chosen = stratified_positions(labels, count)
    if isinstance(images, StoredImages):
        return images.subset(chosen), labels[chosen]
    return images[chosen], labels[chosen]


def split_off(images: InMemory, labels: Labels, count: int) -> tuple[tuple[InMemory, Labels], tuple[InMemory, Labels]]:
    """Split off a stratified sample, the same one whatever the seed of the run.

    Returns:
        The remaining images with their labels, and the ``count`` images split off with theirs.

    Raises:
        InputError: If there are too few images for one of each class on both sides.
    """
    rest, chosen = stratified_positions(labels, count)
    return (images[rest], labels[rest]), (images[chosen], labels[chosen])


def stratified_positions(labels: Labels, count: int) -> tuple[list[int], list[int]]:
    """Choose ``count`` labels, each class in proportion, the same ones every time.

    Returns:
        Positions of the remaining labels, and positions of the chosen ones.

    Raises:
        InputError: If there are too few labels for one of each class on both sides.
    """
    try:
        rest, chosen = train_test_split(range(len(labels)), test_size=count, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"cannot set {count} of {len(labels)} images apart: {error}") from error
    return rest, chosen
