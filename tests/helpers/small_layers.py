"""Single layers to inspect: on the meta device, in channels_last, in float16 unless asked otherwise."""

from typing import Any

import torch
from torch import nn

from lightconv.analysis import layers
from lightconv.analysis.compilation import CompiledKernel, Launch, compile_kernels, training_step
from lightconv.analysis.layers import Layer


def layer(module: nn.Module, *images: int, dtype: torch.dtype = torch.float16, needs_gradient: bool = True) -> Layer:
    """Return a module as one layer of a network.

    Args:
        module: a single convolution, block or pooling.
        *images: shape of the input, (n, c, h, w).
        dtype: dtype of images and parameters.
        needs_gradient: False if the images are the network's own input.
    """
    model, inputs = layers.convert(nn.Sequential(module), torch.empty(images), dtype, torch.channels_last)
    (only,) = layers.find_layers(model.to("meta"), inputs.to("meta"))
    return only._replace(images=only.images.requires_grad_(needs_gradient))


def launches(only: Layer, architecture: str) -> dict[str, Launch]:
    """Return the first launch of each operator of a layer's training step, keyed by the operator's name."""
    calls = training_step(only.module, only.images, architecture)
    return {call.operator: call.launches[0] for call in calls if call.launches}


def compile_one(launch: Launch) -> CompiledKernel:
    """Compile the kernel of one launch."""
    (kernel,) = compile_kernels([launch])
    return kernel


def kernel_of(**figures: Any) -> CompiledKernel:
    """Return a compiled kernel for sm_90 with four warps and no code, except for the given figures."""
    empty: dict[str, Any] = {
        "name": "",
        "architecture": "sm_90",
        "warps": 4,
        "registers": 0,
        "spilled": 0,
        "shared": 0,
        "code_bytes": 0,
        "seconds": None,
        "machine_code": "",
        "code": (),
        "loop": (),
        "ttir": "",
    }
    return CompiledKernel(**(empty | figures))
