"""Batches cut out of tensors in memory: one gather a batch instead of one Python call an image."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lightconv.data.stored import StoredImages

Batch = tuple[Float[Tensor, "n ..."], Int64[Tensor, " n"] | Float[Tensor, "n classes"]]
Transform = Callable[[Tensor, torch.Generator], Tensor]
Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def generator(*entropy: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that depends on these numbers alone, well mixed (numpy's SeedSequence)."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


class Batches:
    """A data loader over uint8 images in memory, or stored elsewhere.

    Order and augmentation depend on seed, epoch and position alone, never on how often somebody has drawn a random
    number before: a resumed run sees what the uninterrupted one would have seen, in the middle of an epoch too
    (Lightning stores ``state_dict`` in its checkpoints).

    Args:
        images: the set.
        labels: one class an image.
        batch_size: images a batch; the last batch may be smaller.
        transform: called with (uint8 images on the device, generator), returns what the model sees.
        shuffle: draw a new order every epoch.
        seed: of order and augmentation.
        epoch: says which epoch an iteration belongs to; by default iterations are counted.
        rank: this process among ``world_size``, which share the set among themselves.
        world_size: number of processes.
        device: where batches are transformed and delivered.
        mix: called with (transformed images, labels, generator), returns both as the model sees them.
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
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.transform, self.mix = batch_size, transform, mix
        self.shuffle, self.seed, self.epoch = shuffle, seed, epoch
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.features: Float[Tensor, "copies n features"] | None = None  # delivered in place of the images
        self._iterations = 0
        self._position = {"epoch": -1, "batch": 0}  # where the next batch is

    def __len__(self) -> int:
        """Batches an epoch, in this process."""
        return math.ceil(len(self._shard(torch.arange(len(self.labels)))) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Start an epoch, or go on with the one that ``load_state_dict`` has named."""
        epoch = self.epoch() if self.epoch else self._iterations
        self._iterations += 1
        first = self._position["batch"] if self._position["epoch"] == epoch else 0
        order = torch.arange(len(self.labels))
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator(self.seed, epoch))
        chunks = self._shard(order).split(self.batch_size)
        for batch in range(first, len(chunks)):
            self._position = {"epoch": epoch, "batch": batch + 1}
            yield self._batch(chunks[batch], epoch, batch)
        self._position = {"epoch": epoch + 1, "batch": 0}

    def _batch(self, chunk: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        labels = self.labels[chunk].to(self.device, non_blocking=True)
        if self.features is not None:
            return self.features[epoch % len(self.features)][chunk].to(self.device, non_blocking=True), labels
        draw = generator(self.seed, epoch, self.rank, number, device=self.device)
        images = self.transform(self.images[chunk].to(self.device, non_blocking=True), draw)
        return self.mix(images, labels, draw) if self.mix else (images, labels)

    def _shard(self, order: Tensor) -> Tensor:
        # training processes step together, so they need equally many images; evaluation must not lose any
        if self.shuffle:
            order = order[: len(order) // self.world_size * self.world_size]
        return order[self.rank :: self.world_size]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there at the next iteration of that epoch."""
        self._position = dict(state)
