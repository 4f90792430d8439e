"""The convolutions, blocks and max-poolings of known networks, as lightconv would be called for them.

A layer is found by running the network on stand-ins without values. Where an activation is called right after a
convolution, on its map, and perhaps a non-overlapping max-pooling right after that, they are one block.
"""

import copy
from collections.abc import Callable
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
from lightconv.surgery.chains import ACTIVATIONS, activation_of, pooling_unsupported_reason
from lightconv.surgery.fuse import acts_as

_MODULES = {name: module for module, name in ACTIVATIONS.items()} | {"identity": nn.Identity}


class Layer(NamedTuple):
    """A layer of a network and what it is called with.

    Attributes:
        name: of the module within the network.
        module: of ``lightconv.nn``, on the "meta" device.
        images: on the "meta" device; they require a gradient unless they are the network's own.
        unfused: the same layer of torch.nn.
    """

    name: str
    module: nn.Module
    images: Tensor
    unfused: nn.Module

    @property
    def sizes(self) -> str:
        """The image, and what differs from a plain layer: "64x56x56, 128 of 3x3, stride 2, pool 2"."""
        module: Any = self.module
        image, window = ("x".join(map(str, sizes)) for sizes in (self.images.shape[1:], pair(module.kernel_size) or ()))
        parts = [
            image,
            f"{module.out_channels} of {window}" if isinstance(module, nn.Conv2d) else f"windows of {window}",
        ]
        for name in ("stride", "dilation", "groups", "pool"):
            first, second = pair(getattr(module, name, 1)) or (1, 1)
            if (first, second) != (1, 1):
                parts.append(f"{name} {first}" if first == second else f"{name} {first}x{second}")
        return ", ".join(parts)

    def __str__(self) -> str:
        """What decides how it is computed."""
        size = "x".join(map(str, self.images.shape))
        options = str(self.module).partition("(")[2].removesuffix(")")
        return f"{size} {type(self.module).__name__}({options})"


def layers_of(network: str, batch_size: int, dtype: torch.dtype, memory_format: torch.memory_format) -> list[Layer]:
    """Every layer of a network, in the order of its calls.

    Args:
        network: "lenet", or a network of torchvision.models.
        batch_size: images.
        dtype: of images and parameters.
        memory_format: of images and filters.

    Raises:
        InputError: for an unknown network.
    """
    with torch.device("meta"):
        model, size = known_network(network)
        images = torch.empty(batch_size, *size)
    return found(*formatted(model, images, dtype, memory_format))


def formatted(
    model: nn.Module, images: Tensor, dtype: torch.dtype, memory_format: torch.memory_format
) -> tuple[nn.Module, Tensor]:
    """A model and its images in a dtype and a memory format."""
    options: Any = {"dtype": dtype, "memory_format": memory_format}  # which torch's signatures forget to allow
    return model.to(**options), images.to(**options)


def known_network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network with random weights, by name, and the size of an image for it.

    Raises:
        InputError: for an unknown network.
    """
    if name == "lenet":
        return LeNet(), (1, 28, 28)
    if name not in torchvision.models.list_models(torchvision.models):
        raise InputError(f"no network {name!r}: lenet, or one of torchvision.models such as vgg16, resnet50")
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    side = 299 if name == "inception_v3" else 224
    return torchvision.models.get_model(name, weights=None, **options), (3, side, side)


def found(model: nn.Module, images: Tensor) -> list[Layer]:
    """Every layer of a model that is called, as lightconv's modules, in the order of the calls.

    Args:
        model: on the "meta" device.
        images: that it is called with, on the "meta" device; their memory format is every layer's.
    """
    calls = _calls(model, images)
    memory_format = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    layers = []
    for index, call in enumerate(calls):
        if not issubclass(acts_as(call.module), nn.Conv2d | nn.MaxPool2d) or _pools_a_block(calls, index):
            continue
        ours, unfused = _as_ours(calls[index : index + 3])
        given = on_meta(call.given).contiguous(memory_format=memory_format)
        layers.append(Layer(call.name, ours, given.requires_grad_(call.given is not images), unfused))
    return layers


class _Call(NamedTuple):
    name: str
    module: nn.Module
    given: Tensor
    result: Tensor


def _calls(model: nn.Module, images: Tensor) -> list[_Call]:
    """Every call of a module that has no modules within."""
    calls: list[_Call] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, result: calls.append(_Call(name, module, given[0], result))

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with torch.no_grad(), use_backend("reference"):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _chain(calls: list[_Call]) -> tuple[str | None, tuple[int, int]]:
    """The activation right after a convolution, None if there is none, and the size of the pooling after that."""
    convolution, *rest = calls
    if type(convolution.module) is not nn.Conv2d or not rest or rest[0].given is not convolution.result:
        return None, (1, 1)
    activation = activation_of(rest[0].module)
    if activation is None or activation not in NON_DECREASING:
        return None, (1, 1)
    pool = None
    if len(rest) > 1 and rest[1].given is rest[0].result and type(pooling := rest[1].module) is nn.MaxPool2d:
        pool = None if pooling_unsupported_reason(pooling) else pair(pooling.kernel_size)
    return activation, pool or (1, 1)


def _pools_a_block(calls: list[_Call], index: int) -> bool:
    return index >= 2 and isinstance(calls[index].module, nn.MaxPool2d) and _chain(calls[index - 2 :])[1] != (1, 1)


def _as_ours(calls: list[_Call]) -> tuple[nn.Module, nn.Module]:
    """A layer as lightconv's module and as torch's, on the same parameters."""
    module: Any = calls[0].module
    activation, pool = _chain(calls)
    acts = acts_as(module, calls[0].given)
    if issubclass(acts, ConvBlock):
        activation, pool = module.activation, pair(module.pool) or (1, 1)
    if activation is None:
        pools = isinstance(module, nn.MaxPool2d)
        return _of_class(module, MaxPool2d if pools else Conv2d), _of_class(module, acts)
    block = _of_class(module, ConvBlock, activation=activation, pool=pool)
    parts = [_of_class(module, nn.Conv2d), _MODULES[activation]()]
    return block, nn.Sequential(*parts, *([nn.MaxPool2d(pool)] if pool != (1, 1) else []))


def _of_class(module: nn.Module, kind: type[nn.Module], **attributes: Any) -> nn.Module:
    twin = copy.copy(module)
    twin.__class__ = kind
    twin.__dict__.update(attributes)
    return twin
