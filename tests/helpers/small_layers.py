"""Layers to judge: on "meta", in half precision and channels_last unless asked otherwise."""

import torch
from torch import nn

from lightconv.analysis import layers
from lightconv.analysis.compilation import Compiled, Launch, compiled, training_step
from lightconv.analysis.layers import Layer


def layer(module: nn.Module, *images: int, dtype: torch.dtype = torch.float16, needs_gradient: bool = True) -> Layer:
    """A module as one layer of a network, whose images are its own or a former layer's."""
    formatted = layers.formatted(nn.Sequential(module), torch.empty(images), dtype, torch.channels_last)
    (found,) = layers.found(*(part.to("meta") for part in formatted))
    return found._replace(images=found.images.requires_grad_(needs_gradient))


def launches(given: Layer, architecture: str) -> dict[str, Launch]:
    """The launches of a training step by their operator's name; of two, the first."""
    calls = training_step(given.module, given.images, architecture)
    return {call.operator: call.launches[0] for call in calls if call.launches}


def compile_one(launch: Launch) -> Compiled:
    """What the compiler makes of a launch."""
    return compiled([launch])[0]
