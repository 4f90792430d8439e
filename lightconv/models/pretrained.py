"""Networks pretrained on ImageNet with a new head, and their blocks for fine-tuning."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.models import backbones

Pooling = Literal["average", "max", "none"]
_POOLINGS = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}


class Pretrained(nn.Module):
    """Convolutional part of a known network, pooling, and a new head of linear layers.

    Args:
        backbone: library and network: "torchvision/resnet50", "timm/efficientnet_lite0" or any other convolutional
            network.
        classes: number of classes, or number of values of a regression.
        weights: "default" for the library's, downloaded on first use; "installed" for EfficientNet-Lite0's from the
            extra ``pretrained``; "none" for random ones; or a file: a state dict, .safetensors, or a checkpoint.
        channels: channels of the network's input. With 3, the data repeat grey images. With 1, the filters that see the
            image are summed over their channels.
        image_size: height and width of the network's input in pixels; None for the size of the weights.
        pooling: "average" or "max" over each feature map, or "none" for a head on every pixel of the last map.
        hidden: units of the head's hidden layers.
        dropout: probability of dropout before each linear layer.

    Attributes:
        name: name of the backbone.
        backbone: convolutional part, ``(n, channels, h, w)`` to the last map.
        head: linear layers, ``(n, features)`` to ``(n, classes)``.
        preprocessing: size, mean and std of the network's images, for lightconv's data.
        blocks: names of modules from the head to the input: the head, then the modules of each resolution.

    Shape:
        - Input: ``(n, channels, h, w)``, or the result of `features`, ``(n, features)``.
        - Output: logits, ``(n, classes)``.

    Raises:
        InputError: If the network is unknown or not convolutional, or if the weights cannot be read or downloaded.

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> model = lc.models.Pretrained("torchvision/squeezenet1_1", classes=5, weights="none", image_size=32)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
        >>> model.preprocessing.mean
        (0.485, 0.456, 0.406)
    """

    def __init__(
        self,
        backbone: str,
        classes: int = 10,
        weights: Literal["default", "installed", "none"] | str = "default",
        channels: int = 3,
        image_size: int | None = None,
        pooling: Pooling = "average",
        hidden: Sequence[int] = (),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if channels not in {1, 3}:
            raise InputError(f"model.channels={channels}: pretrained networks see 3 channels, or 1")
        if pooling not in {*_POOLINGS, "none"}:
            raise InputError(f"model.pooling={pooling}: choose average, max or none")
        self.name = backbone
        self.classes = classes
        self.backbone, self.preprocessing = backbones.build(backbone, weights, channels)
        if image_size:
            self.preprocessing = replace(self.preprocessing, image_size=image_size)
        side = self.preprocessing.image_size
        stages, map_shape = _trace_stages(self.backbone, torch.zeros(1, channels, side, side), backbone)
        self.blocks = [["head"]]
        for stage in reversed(stages):
            self.blocks.append([f"backbone.{name}" for name in stage])
        # (n, c, h, w) -> (n, features)
        _, features, height, width = map_shape
        self.pool: nn.Module
        if pooling == "none":
            features *= height * width
            self.pool = nn.Flatten()
        else:
            self.pool = nn.Sequential(_POOLINGS[pooling](1), nn.Flatten())
        self.head = build_head([features, *hidden, classes], dropout)

    @property
    def frozen(self) -> bool:
        """True if nothing before the head trains."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """Return the input of the head."""
        return self.pool(self.backbone(images))

    def forward(self, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Return the logits of images, or of their ``features``."""
        return self.head(images if images.ndim == 2 else self.features(images))


def build_head(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Build linear layers with dropout before and ReLU between them.

    Args:
        sizes: number of features, hidden units and outputs.
        dropout: probability of dropout.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, outputs), nn.ReLU()]
    # no ReLU after the logits
    return nn.Sequential(*layers[:-1])


def _trace_stages(network: nn.Module, image: Float[Tensor, "1 c h w"], name: str) -> tuple[list[list[str]], torch.Size]:
    """Run a network on a blank image and group its modules by the height of their maps.

    Args:
        network: the convolutional part.
        image: blank image, (1, c, h, w).
        name: name of the network, for errors.

    Returns:
        Names of the network's units in call order, one list per height, and the shape of the last map. A unit
        without a map of its own belongs to the one before it.

    Raises:
        InputError: If the network cannot take the image, or returns anything but a map.
    """
    heights: dict[str, int | None] = {}
    units = dict(_list_units(network))
    hooks = [module.register_forward_hook(build_height_hook(heights, unit)) for unit, module in units.items()]
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
        raise InputError(f"model.backbone={name} is not convolutional: its result is not a feature map")
    # units in call order, then those that were never called
    order = {**heights, **units}
    stages: dict[int, list[str]] = {}
    height = 0
    for unit in order:
        if next(units[unit].parameters(), None) is not None:
            height = heights.get(unit) or height
            stages.setdefault(height, []).append(unit)
    return list(stages.values()), last.shape


def _list_units(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a network by name; an nn.Sequential or nn.ModuleList counts as its own children."""
    for name, child in network.named_children():
        if type(child) in {nn.Sequential, nn.ModuleList}:
            yield from _list_units(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def build_height_hook(heights: dict[str, int | None], unit: str) -> Callable[[nn.Module, Any, Any], None]:
    """Build a forward hook that records the height of a unit's first map, None if its result is not a map."""

    def record(module: nn.Module, arguments: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 4
        heights.setdefault(unit, output.shape[2] if is_map else None)

    return record
