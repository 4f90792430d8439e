"""lightconv gallery: a picture of training images, each as it is and many times as training sees it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from lightconv import visualize
from lightconv.cli.settings import check_integer
from lightconv.data import Batches, ImageData
from lightconv.data.batches import seeded_generator
from lightconv.runs.build import instantiate


def gallery(config: DictConfig) -> None:
    """Draw the picture, write it, and print its path.

    Raises:
        InputError: If a setting is out of range or the images cannot be read.
    """
    check_integer(config, "rows")
    check_integer(config, "columns")
    data: ImageData = instantiate(config.data)
    data.prepare_data()
    figure = draw(data, config.rows, config.columns, config.seed)
    path = Path(HydraConfig.get().runtime.output_dir, "gallery.png")
    figure.savefig(path, dpi=150)
    print(path)


def draw(data: ImageData, rows: int, columns: int, seed: int) -> Figure:
    """Draw random training images, one per row: the original, then its variations.

    Args:
        data: image set with the augmentation to show.
        rows: number of images.
        columns: number of variations per image.
        seed: seed of the choice of images and of the variations.
    """
    images, labels = data.split("train")
    chosen = torch.randperm(len(labels), generator=seeded_generator(seed))[:rows]
    originals = _all_in_one_batch(data.val_dataloader(), images[chosen], labels[chosen], seed)
    varied = _all_in_one_batch(data.train_dataloader(), images[chosen], labels[chosen], seed)
    batches = list(originals)
    for _ in range(columns):
        batches += varied  # every iteration is a new epoch, with other variations
    # columns times (rows, c, h, w) -> (rows, columns, c, h, w)
    shown = torch.stack([pixels(data, batch_images) for batch_images, _ in batches], 1)
    captions = [[caption(labels[row], data.classes) for _, labels in batches] for row in range(len(chosen))]
    title = f"{type(data).__name__}, augmentation: {_augmentation_name(data)}"
    return visualize.gallery(shown, captions, title)


def _all_in_one_batch(loader: Batches, images: Tensor, labels: Tensor, seed: int) -> Batches:
    return Batches(images, labels, batch_size=len(labels), transform=loader.transform, seed=seed, mix=loader.mix)


def pixels(data: ImageData, images: Tensor) -> Tensor:
    """Undo the normalisation: (n, c, h, w) with mean 0 and std 1 to pixels in 0..1."""
    mean = images.new_tensor(data.mean).view(-1, 1, 1)
    std = images.new_tensor(data.std).view(-1, 1, 1)
    return images * std + mean


def caption(label: Tensor, classes: Sequence[str]) -> str:
    """Return the class of an image, or the classes of a mixed image with their shares, the largest first."""
    if label.ndim == 0:
        return classes[int(label)]
    lines = []
    for share, name in sorted(zip(label.tolist(), classes, strict=True), reverse=True):
        percent = round(100 * share)
        if percent == 100:
            lines.append(name)
        elif percent > 0:
            lines.append(f"{percent}% {name}")
    return "\n".join(lines)


def _augmentation_name(data: ImageData) -> str:
    chosen = HydraConfig.get().runtime.choices["augmentation"]
    if chosen:
        return chosen
    return "its own" if data.augmentation else "none"
