"""Batches cut out of tensors in memory: one gather per batch instead of one Python call per image."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lightconv.data.stored import StoredImages

Batch = tuple[Float[Tensor, "n ..."], Int64[Tensor, " n"] | Float[Tensor, "n classes"]]
Transform = Callable[[Tensor, torch.Generator], Tensor]
Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def seeded_generator(*entropy: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator that depends on these numbers alone.

    numpy's SeedSequence mixes the numbers: neighbouring seeds or epochs give unrelated streams.

    Args:
        entropy: whole numbers, at least 0, such as a seed, an epoch and a batch number.
        device: device of the generator.
    """
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


class Batches:
    """Data loader over uint8 images in memory or in `StoredImages`.

    Order and augmentation depend on seed, epoch and batch number alone, never on the global random state. A resumed run
    therefore sees the same batches as an uninterrupted one, in the middle of an epoch too: Lightning stores
    ``state_dict`` in its checkpoints.

    Args:
        images: all images.
        labels: one class per image.
        batch_size: images per batch; the last batch may be smaller.
        transform: function of (uint8 images on the device, generator); returns the model's input.
        shuffle: draw a new order every epoch.
        seed: seed of order and augmentation.
        epoch: function that returns the number of the current epoch; None counts the iterations over this loader.
        rank: number of this process. Processes share the images among themselves.
        world_size: number of processes.
        device: device of the batches; ``transform`` runs there.
        mix: function of (transformed images, labels, generator); returns images and labels for the model.
        join_last: add the image of a last batch of one image to the batch before.

    Shape:
        - images: (n, c, h, w) uint8; labels: (n,) int64.
        - each batch: whatever ``transform`` makes of (b, c, h, w), and labels (b,), b up to ``batch_size``.

    Example:
        >>> import torch
        >>> images, labels = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10)
        >>> loader = Batches(images, labels, batch_size=4, transform=lambda images, generator: images / 255)
        >>> [tuple(images.shape) for images, labels in loader]
        [(4, 1, 8, 8), (4, 1, 8, 8), (2, 1, 8, 8)]
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"] | StoredImages,
        labels: Int64[Tensor, " n"],
        batch_size: int,
        transform: Transform,
        shuffle: bool = False,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        mix: Mix | None = None,
        join_last: bool = False,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.transform = transform
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.mix = mix
        self.join_last = join_last
        # delivered instead of the images if set; copies take turns epoch by epoch
        self.features: Float[Tensor, "copies n features"] | None = None
        self._iterations = 0
        self._position = {"epoch": -1, "batch": 0}  # of the next batch

    def __len__(self) -> int:
        """Return the number of batches per epoch in this process."""
        return len(self._split(torch.arange(len(self.labels))))

    def __iter__(self) -> Iterator[Batch]:
        """Start an epoch, or continue the one named by ``load_state_dict``."""
        epoch = self._iterations if self.epoch is None else self.epoch()
        self._iterations += 1
        first = 0
        if self._position["epoch"] == epoch:
            first = self._position["batch"]
        order = torch.arange(len(self.labels))
        if self.shuffle:
            order = torch.randperm(len(order), generator=seeded_generator(self.seed, epoch))
        chunks = self._split(order)
        for number in range(first, len(chunks)):
            self._position = {"epoch": epoch, "batch": number + 1}
            yield self._batch(chunks[number], epoch, number)
        self._position = {"epoch": epoch + 1, "batch": 0}

    def _batch(self, rows: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        labels = self.labels[rows].to(self.device, non_blocking=True)
        if self.features is not None:
            # (copies, n, features) -> (b, features)
            copy = self.features[epoch % len(self.features)]
            return copy[rows].to(self.device, non_blocking=True), labels
        generator = seeded_generator(self.seed, epoch, self.rank, number, device=self.device)
        # (n, c, h, w) uint8 -> (b, c, h, w) uint8 -> the model's input
        images = self.images[rows].to(self.device, non_blocking=True)
        images = self.transform(images, generator)
        if self.mix is None:
            return images, labels
        return self.mix(images, labels, generator)

    def _split(self, order: Tensor) -> list[Tensor]:
        """Return the rows of each batch of this process."""
        chunks = list(self._own_share(order).split(self.batch_size))
        if self.join_last and len(chunks) > 1 and len(chunks[-1]) == 1:
            last = chunks.pop()
            chunks[-1] = torch.cat([chunks[-1], last])
        return chunks

    def _own_share(self, order: Tensor) -> Tensor:
        # Training processes step together and need equally many images. Evaluation must not lose any.
        if self.shuffle:
            order = order[: len(order) // self.world_size * self.world_size]
        return order[self.rank :: self.world_size]

    def state_dict(self) -> dict[str, int]:
        """Return epoch and number of the next batch."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from this position at the next iteration of its epoch."""
        self._position = dict(state)
