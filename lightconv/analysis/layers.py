"""Convolutions, blocks and max-poolings of a network, together with the images of each call.

Layers are found by running the network on tensors without values. A convolution is a block if an activation is called
right after it on its map. The block includes a non-overlapping max-pooling called right after the activation.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.models import LeNet
from lightconv.nn import Conv2d, ConvBlock, MaxPool2d
from lightconv.operators.backend import use_backend
from lightconv.operators.conv_block import NON_DECREASING
from lightconv.operators.geometry import is_channels_last, pair
from lightconv.operators.meta import on_meta
from lightconv.surgery.chains import ACTIVATIONS, activation_name, pooling_unsupported_reason
from lightconv.surgery.fuse import effective_class

_ACTIVATION_CLASSES: dict[str, type[nn.Module]] = {name: module for module, name in ACTIVATIONS.items()}
_ACTIVATION_CLASSES["identity"] = nn.Identity


class Layer(NamedTuple):
    """A layer of a network and the images of its call.

    Attributes:
        name: module's name within the network.
        module: layer of ``lightconv.nn``, on the meta device.
        images: input, (n, c, h, w), on the meta device; they require a gradient unless they are the network's own.
        unfused: the same layer of ``torch.nn``, on the same parameters.
    """

    name: str
    module: nn.Module
    images: Tensor
    unfused: nn.Module

    @property
    def sizes(self) -> str:
        """Image size, filters and unusual options: "64x56x56, 128 of 3x3, stride 2, pool 2"."""
        module: Any = self.module
        kernel = "x".join(map(str, pair(module.kernel_size) or ()))
        parts = ["x".join(map(str, self.images.shape[1:]))]
        if isinstance(module, nn.Conv2d):
            parts.append(f"{module.out_channels} of {kernel}")
        else:
            parts.append(f"windows of {kernel}")
        for name in ("stride", "dilation", "groups", "pool"):
            vertical, horizontal = pair(getattr(module, name, 1)) or (1, 1)
            if vertical != horizontal:
                parts.append(f"{name} {vertical}x{horizontal}")
            elif vertical != 1:
                parts.append(f"{name} {vertical}")
        return ", ".join(parts)

    def __str__(self) -> str:
        """Return the images' shape and all options of the module."""
        size = "x".join(map(str, self.images.shape))
        options = str(self.module).partition("(")[2].removesuffix(")")
        return f"{size} {type(self.module).__name__}({options})"


def network_layers(
    network: str, batch_size: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> list[Layer]:
    """Return every layer of a known network, in the order of the calls.

    Args:
        network: "lenet", or a network of torchvision.models.
        batch_size: images per batch.
        dtype: dtype of images and parameters.
        memory_format: memory format of images and filters.

    Raises:
        InputError: If the network is unknown.

    Example:
        >>> import torch
        >>> for layer in network_layers("lenet", 32, torch.float16, torch.channels_last):
        ...     print(layer.name, layer.sizes)
        conv1 1x28x28, 6 of 5x5, pool 2
        conv2 6x14x14, 16 of 5x5, pool 2
    """
    with torch.device("meta"):
        model, image_shape = build_network(network)
        images = torch.empty(batch_size, *image_shape)
    return find_layers(*convert(model, images, dtype, memory_format))


def convert(
    model: nn.Module, images: Tensor, dtype: torch.dtype, memory_format: torch.memory_format
) -> tuple[nn.Module, Tensor]:
    """Convert a model and its images to a dtype and a memory format.

    Args:
        model: module to convert in place.
        images: images, (n, c, h, w).
        dtype: dtype of images and parameters.
        memory_format: memory format of images and filters.
    """
    # torch's type annotations of nn.Module.to and Tensor.to leave this combination out
    options: Any = {"dtype": dtype, "memory_format": memory_format}
    return model.to(**options), images.to(**options)


def build_network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build a network with random weights.

    Args:
        name: "lenet", or a network of torchvision.models.

    Returns:
        The network, and the shape of an image for it, (c, h, w).

    Raises:
        InputError: If the network is unknown.
    """
    if name == "lenet":
        return LeNet(), (1, 28, 28)
    if name not in torchvision.models.list_models(torchvision.models):
        raise InputError(f"no network {name!r}: lenet, or one of torchvision.models such as vgg16, resnet50")
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        # by default these two initialise slowly, and warn about it
        options["init_weights"] = False
    side = 299 if name == "inception_v3" else 224
    return torchvision.models.get_model(name, weights=None, **options), (3, side, side)


def find_layers(model: nn.Module, images: Tensor) -> list[Layer]:
    """Return every called layer of a model as lightconv's modules, in the order of the calls.

    Args:
        model: model on the meta device.
        images: input of the model, (n, c, h, w), on the meta device; all layers get its memory format.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
        ...     (layer,) = find_layers(model, torch.empty(2, 3, 12, 12))
        >>> type(layer.module).__name__, layer.sizes
        ('ConvBlock', '3x12x12, 8 of 3x3, pool 2')
    """
    calls = record_calls(model, images)
    memory_format = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    layers = []
    for index, call in enumerate(calls):
        is_layer = issubclass(effective_class(call.module), nn.Conv2d | nn.MaxPool2d)
        if not is_layer or _pools_a_block(calls, index):
            continue
        ours, unfused = build_layer(calls[index : index + 3])
        inputs = on_meta(call.input).contiguous(memory_format=memory_format)
        inputs.requires_grad_(call.input is not images)
        layers.append(Layer(call.name, ours, inputs, unfused))
    return layers


class _Call(NamedTuple):
    """One call of a module without children."""

    name: str
    module: nn.Module
    input: Tensor
    result: Tensor


def group_equal_layers(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Group layers that run the same kernels on the same sizes, in the order of their first members."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        key = f"{layer} {layer.images.requires_grad}"
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def record_calls(model: nn.Module, images: Tensor) -> list[_Call]:
    """Run a model and return the calls of all its modules without children."""
    calls: list[_Call] = []

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, result: Tensor) -> None:
            calls.append(_Call(name, module, inputs[0], result))

        return record

    hooks = []
    for name, module in model.named_modules():
        if not any(module.children()):
            hooks.append(module.register_forward_hook(recorder(name)))
    try:
        with torch.no_grad(), use_backend("reference"):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _chain(calls: list[_Call]) -> tuple[str | None, tuple[int, int]]:
    """Return the activation right after a convolution, and the size of the max-pooling right after that.

    Args:
        calls: the convolution's call and the two after it, if there are any.

    Returns:
        The activation's name, None without one; and the window (h, w), (1, 1) without a pooling.
    """
    no_pool = (1, 1)
    convolution = calls[0]
    if type(convolution.module) is not nn.Conv2d or len(calls) < 2 or calls[1].input is not convolution.result:
        return None, no_pool
    activation = activation_name(calls[1].module)
    # a block applies the activation after pooling, which only a non-decreasing one allows
    if activation is None or activation not in NON_DECREASING:
        return None, no_pool
    if len(calls) < 3 or calls[2].input is not calls[1].result:
        return activation, no_pool
    pooling = calls[2].module
    if type(pooling) is not nn.MaxPool2d or pooling_unsupported_reason(pooling) is not None:
        return activation, no_pool
    return activation, pair(pooling.kernel_size) or no_pool


def _pools_a_block(calls: list[_Call], index: int) -> bool:
    """Return True if a call is the max-pooling of the block that begins two calls earlier."""
    if index < 2 or not isinstance(calls[index].module, nn.MaxPool2d):
        return False
    _, pool = _chain(calls[index - 2 : index + 1])
    return pool != (1, 1)


def build_layer(calls: list[_Call]) -> tuple[nn.Module, nn.Module]:
    """Build a layer as lightconv's module and as torch's, on the same parameters.

    Args:
        calls: the layer's call and the two after it, if there are any.
    """
    module: Any = calls[0].module
    activation, pool = _chain(calls)
    actual_class = effective_class(module, calls[0].input)
    if issubclass(actual_class, ConvBlock):
        activation, pool = module.activation, pair(module.pool) or (1, 1)
    if activation is None:
        ours = MaxPool2d if isinstance(module, nn.MaxPool2d) else Conv2d
        return _copy_as(module, ours), _copy_as(module, actual_class)
    block = _copy_as(module, ConvBlock, activation=activation, pool=pool)
    parts = [_copy_as(module, nn.Conv2d), _ACTIVATION_CLASSES[activation]()]
    if pool != (1, 1):
        parts.append(nn.MaxPool2d(pool))
    return block, nn.Sequential(*parts)


def _copy_as(module: nn.Module, kind: type[nn.Module], **attributes: Any) -> nn.Module:
    """Return a shallow copy of a module as another class, with the same parameters and further attributes."""
    twin = copy.copy(module)
    twin.__class__ = kind
    twin.__dict__.update(attributes)
    return twin
