"""Networks pretrained on ImageNet with a new head, and the blocks that fine-tuning goes by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.models import backbones

_POOLINGS = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}


class Pretrained(nn.Module):
    """The convolutions of a known network, pooling, and a head of linear layers to train.

    Args:
        backbone: "torchvision/resnet50", "timm/efficientnet_lite0" or any other convolutional network of theirs.
        classes: outputs: classes, or the values of a regression.
        weights: "default", the library's, downloaded when first asked for; "installed", of EfficientNet-Lite0, from
            the extra ``pretrained``; "none"; or a file: a state dict, .safetensors, or a checkpoint of lightconv's.
        channels: of the images that the network sees: 3, for which data repeat grey ones, or 1, for which the
            filters of the first convolution are summed over their channels.
        image_size: height and width that the network sees; None for that of the weights.
        pooling: "average", "max", or "none" for a head that sees every pixel of the last map.
        hidden: units of hidden layers of the head.
        dropout: probability, before each linear layer.

    Attributes:
        name: the backbone's.
        backbone: (n, channels, h, w) to the last map.
        head: (n, features) to (n, classes).
        preprocessing: what the network expects of its images, for lightconv's data.
        blocks: names of modules from the head to the input: the head, then those of each resolution.

    Raises:
        InputError: for an unknown network, one that is not convolutional, or weights that cannot be had.
    """

    def __init__(
        self,
        backbone: str,
        classes: int = 10,
        weights: str = "default",
        channels: int = 3,
        image_size: int | None = None,
        pooling: str = "average",
        hidden: Sequence[int] = (),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if channels not in {1, 3}:
            raise InputError(f"model.channels={channels}: pretrained networks see 3 channels, or 1")
        if pooling not in {*_POOLINGS, "none"}:
            raise InputError(f"model.pooling={pooling}: choose average, max or none")
        self.name, self.classes = backbone, classes
        self.backbone, self.preprocessing = backbones.build(backbone, weights, channels)
        self.preprocessing = replace(self.preprocessing, image_size=image_size or self.preprocessing.image_size)
        side = self.preprocessing.image_size
        stages, shape = _stages(self.backbone, torch.zeros(1, channels, side, side), backbone)
        self.blocks = [["head"], *([f"backbone.{name}" for name in stage] for stage in reversed(stages))]
        features = shape[1] * shape[2] * shape[3] if pooling == "none" else shape[1]
        self.pool = nn.Sequential(_POOLINGS[pooling](1), nn.Flatten()) if pooling != "none" else nn.Flatten()
        self.head = _head([features, *hidden, classes], dropout)

    @property
    def frozen(self) -> bool:
        """Whether nothing before the head trains."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """What the head sees."""
        return self.pool(self.backbone(images))

    def forward(self, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Return the logits of images, or of their ``features``."""
        return self.head(images if images.ndim == 2 else self.features(images))


def _head(sizes: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _stages(network: nn.Module, image: Float[Tensor, "1 c h w"], name: str) -> tuple[list[list[str]], torch.Size]:
    """Try a network on a blank image.

    Returns:
        The names of its modules in the order of their calls, those together whose maps are of one height; and the
        shape of the last map. A module without a map of its own belongs to what precedes it.

    Raises:
        InputError: if the network cannot take the image, or ends in something else than a map.
    """
    heights: dict[str, int | None] = {}
    units = dict(_units(network))
    hooks = [module.register_forward_hook(_noting(heights, unit)) for unit, module in units.items()]
    training = network.training
    try:
        with torch.no_grad():
            last = network.eval()(image)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"model.backbone={name} cannot take images of {image.shape[2]} pixels: {error}") from error
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    if not isinstance(last, Tensor) or last.ndim != 4:
        raise InputError(f"model.backbone={name} ends in no map of features: it is not convolutional")
    stages: dict[int, list[str]] = {}
    height = 0
    for unit in {**heights, **units}:
        if any(True for _ in units[unit].parameters()):
            height = heights.get(unit) or height
            stages.setdefault(height, []).append(unit)
    return list(stages.values()), last.shape


def _units(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        if type(child) in {nn.Sequential, nn.ModuleList}:
            yield from _units(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _noting(heights: dict[str, int | None], unit: str) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, images: Any, maps: Any) -> None:
        heights.setdefault(unit, maps.shape[2] if isinstance(maps, Tensor) and maps.ndim == 4 else None)

    return note
