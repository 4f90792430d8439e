"""Features of a frozen backbone, computed once instead of in every epoch."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightconv.data import ImageData
from lightconv.data.base import SplitName
from lightconv.errors import InputError, InputWarning
from lightconv.keyed_cache import CacheEntry
from lightconv.models import Pretrained
from lightconv.progress import SlowProgress

Features = Float[Tensor, "copies n features"]
_IMAGES_PER_BLOCK = 256  # images hashed at a time


class FeatureCache:
    """Features of images before a network's head, kept in memory or on disk.

    A file on disk is valid for one set of weights, images and transforms. A file for others, or a damaged one, is
    computed again.

    Args:
        place: "memory", or a directory. Features are memory-mapped from its files.
        copies: number of augmented copies of each training image. The copies take turns epoch by epoch. None leaves
            augmented images uncached.

    Raises:
        InputError: If ``copies`` is below 1.
    """

    def __init__(self, place: Literal["memory"] | str | Path = "memory", copies: int | None = None) -> None:
        if copies is not None and copies < 1:
            raise InputError(f"copies={copies}: set it to the number of augmented copies of each image, or to null")
        self.directory = None if place == "memory" else Path(place).expanduser()
        self.copies = copies

    def check(self) -> None:
        """Check that the directory can be written, before there is anything to write.

        Raises:
            InputError: If it is a file, or writing is not permitted.
        """
        if self.directory is None:
            return
        place = self.directory
        while not os.path.lexists(place):
            place = place.parent
        reason = "" if os.access(place, os.W_OK | os.X_OK) else "no permission, or a read-only disk"
        if not place.is_dir():
            reason = f"{place} is no directory"
        if reason:
            raise InputError(
                f"finetune.cache={self.directory} cannot be written ({reason}): set another directory, or memory"
            )

    def can_cache(self, network: Any, data: Any) -> bool:
        """Return True if features stay the same in every epoch.

        They change if the backbone trains, if images are augmented without a number of copies, or if images are mixed.

        Raises:
            InputError: If ``network`` is not a Pretrained or ``data`` is not an ImageData.
        """
        if not isinstance(network, Pretrained) or not isinstance(data, ImageData):
            raise InputError(
                "features are cached for a lightconv.models.Pretrained on a datamodule of lightconv.data; "
                "for other networks or data set cache to null"
            )
        freshly_augmented = data.augmentation is not None and self.copies is None
        # mixing changes labels together with images, and features are kept without labels
        mixed = data.mixing is not None
        return network.frozen and not freshly_augmented and not mixed

    def features(
        self,
        trainer: L.Trainer,
        network: Pretrained,
        data: ImageData,
        show_progress: bool,
    ) -> dict[str, Features]:
        """Return the features of the training and the validation split.

        Args:
            trainer: running Trainer. Its precision is used.
            network: network with a frozen backbone.
            data: datamodule accepted by `can_cache`.
            show_progress: draw a progress bar.

        Returns:
            Features by split name. Without augmentation the first axis has length 1.
        """
        copies: dict[SplitName, list[int | None]] = {"train": [None], "validation": [None]}
        if self.copies and data.augmentation:
            copies["train"] = list(range(self.copies))
        features: dict[str, Features] = {}
        for split, numbers in copies.items():
            parts = []
            for copy in numbers:
                source = _FeatureSource(trainer, network, data, split, copy)
                parts.append(self._load_or_compute(source, show_progress))
            # copies x (n, features) -> (copies, n, features)
            features[split] = torch.stack(parts)
        return features

    def _load_or_compute(self, source: "_FeatureSource", show_progress: bool) -> Float[Tensor, "n features"]:
        if self.directory is None:
            return source.compute(show_progress)
        key = source.key()
        entry = CacheEntry(self.directory / f"{key[:24]}.features", key)
        features = None
        stored = None
        try:
            with entry.lock():
                stored = entry.read()
                if stored is None:
                    features = source.compute(show_progress)
                    notes = {"dtype": str(features.dtype).removeprefix("torch."), "shape": list(features.shape)}
                    entry.write([_byte_view(features)], notes)
                    stored = entry.read()
        except OSError as error:  # a full disk: what has been computed is not lost
            rank_zero_warn(
                f"{self.directory} cannot be written ({error.strerror or error}): features stay in memory, for this "
                "run alone",
                category=InputWarning,
            )
        if stored is None:
            return source.compute(show_progress) if features is None else features
        # a tensor over the memory map: pages are read as batches need them
        flat = torch.frombuffer(stored.content, dtype=getattr(torch, stored.notes["dtype"]))
        return flat.view(stored.notes["shape"])


@dataclass(frozen=True)
class _FeatureSource:
    """Images of one split and the network that turns them into features.

    Attributes:
        trainer: running Trainer.
        network: network with a frozen backbone.
        data: datamodule of the images.
        split: "train" or "validation".
        copy: number of the augmented copy, None without augmentation.
    """

    trainer: L.Trainer
    network: Pretrained
    data: ImageData
    split: SplitName
    copy: int | None

    def compute(self, show_progress: bool) -> Float[Tensor, "n features"]:
        """Run the backbone on all images in order."""
        batches = self.data.ordered_batches(self.split, self.copy)
        progress = SlowProgress(
            f"features of {len(batches.labels):,} images, in batches",
            len(batches),
            enabled=show_progress and self.trainer.is_global_zero,
        )
        with progress, torch.no_grad(), self.trainer.precision_plugin.forward_context():
            parts = []
            for images, _ in batches:
                # bf16-true and other true precisions have weights of their type, as training batches have
                converted = self.trainer.precision_plugin.convert_input(images)
                parts.append(self.network.features(converted).cpu())
                progress.advance()
            return torch.cat(parts)

    def key(self) -> str:
        """Return a SHA-256 digest of everything the features depend on."""
        trainer, network, data = self.trainer, self.network, self.data
        # other versions, precisions and devices round differently
        lines = [
            f"{torch.__version__} {trainer.precision} {trainer.strategy.root_device.type}",
            f"{network.backbone} {network.pool}",
            f"{data.image_shape} {data.mean} {data.std}",
        ]
        if self.copy is not None:
            lines.append(f"{self.copy} {data.seed} {data.augmentation!r}")
        digest = hashlib.sha256("\n".join(lines).encode())
        for tensor in network.backbone.state_dict().values():
            digest.update(_byte_view(tensor))
        # stored images are read block by block, because they need not fit into memory
        images = data.split(self.split)[0]
        for first in range(0, len(images), _IMAGES_PER_BLOCK):
            digest.update(_byte_view(images[first : first + _IMAGES_PER_BLOCK]))
        return digest.hexdigest()


def _byte_view(tensor: Tensor) -> memoryview:
    # numpy knows no bfloat16, so the bytes are viewed as uint8 first
    flat = tensor.detach().cpu().contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
