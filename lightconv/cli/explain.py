"""lightconv explain: pictures of what a network sees."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from lightconv import visualize
from lightconv.cli.settings import check_choice, check_integer
from lightconv.data import ImageData
from lightconv.data.batches import Batches, seeded_generator
from lightconv.runs.build import instantiate


def explain(config: DictConfig) -> None:
    """Draw what is asked for, write it, and print where.

    Raises:
        InputError: for an unknown picture, or what the picture cannot be drawn of.
    """
    check_choice(config, "what", _PICTURES)
    name, draw = _PICTURES[config.what]
    path = Path(HydraConfig.get().runtime.output_dir, name)
    draw(config).savefig(path, dpi=150)
    print(path)


def augmentation(config: DictConfig) -> Figure:
    """Some training images, each as it is and many times as training would see it.

    Raises:
        InputError: for a number of images or variations that is none.
    """
    for name in ("rows", "columns"):
        check_integer(config, name)
    data: ImageData = instantiate(config.data)
    data.prepare_data()
    images, labels = data.split("train")
    chosen = torch.randperm(len(labels), generator=seeded_generator(config.seed))[: config.rows]
    plain, varied = (
        Batches(images[chosen], labels[chosen], len(chosen), loader.transform, seed=config.seed, mix=loader.mix)
        for loader in (data.val_dataloader(), data.train_dataloader())
    )
    columns = [*plain, *(batch for _ in range(config.columns) for batch in varied)]  # other draws in every epoch
    shown = torch.stack([pixels(data, images) for images, _ in columns], 1)
    captions = [[caption(label, data.classes) for label in row] for row in zip(*(y for _, y in columns), strict=True)]
    recipe = HydraConfig.get().runtime.choices["augmentation"] or ("its own" if data.augmentation else "none")
    return visualize.gallery(shown, captions, f"{type(data).__name__}, augmentation: {recipe}")


def pixels(data: ImageData, images: Tensor) -> Tensor:
    """Normalised images as pixels in 0..1."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return images * std + mean


def caption(label: Tensor, classes: Sequence[str]) -> str:
    """The class of an image, or the classes of a mixed one with their shares."""
    if label.ndim == 0:
        return classes[int(label)]
    shares = [(share, name) for share, name in zip(label.tolist(), classes, strict=True) if round(share, 2)]
    return "\n".join(name if round(share, 2) == 1 else f"{share:.0%} {name}" for share, name in sorted(shares)[::-1])


_PICTURES: dict[str, tuple[str, Callable[[DictConfig], Figure]]] = {"augmentation": ("gallery.png", augmentation)}
