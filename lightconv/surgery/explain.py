"""Explain which implementation serves each layer of a model, and why."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from lightconv.errors import InputError
from lightconv.kernels import autotune
from lightconv.kernels.window import Window
from lightconv.nn import Conv2d, ConvBlock, MaxPool2d
from lightconv.operators import backend, conv2d, conv_block, max_pool2d
from lightconv.operators.geometry import convolution_window, output_sizes, pair, pooling_window
from lightconv.operators.meta import on_meta
from lightconv.surgery.fuse import effective_class
from lightconv.surgery.swap import layer_unsupported_reason

if backend.TRITON:
    import triton.language as tl

    from lightconv.kernels import depthwise_plan, implicit_gemm_plan, launch, tiles


@dataclass(frozen=True)
class Row:
    """Explanation of one layer.

    Attributes:
        name: name of the module in the model.
        layer: class of the module.
        served_by: "torch", or the algorithm of lightconv's kernel.
        tile: tile of the forward kernel, rows x columns x depth of the product; "" if torch serves the layer.
        reason: reason for the choice.
    """

    name: str
    layer: str
    served_by: str
    tile: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Result of `explain`. Printing it draws a table.

    Attributes:
        rows: a row per layer, in the order of the calls.
        architecture: GPU architecture of the explanation, "" for none.

    Example:
        >>> import lightconv as lc
        >>> explanation = lc.explain(nn.Conv2d(3, 4, 3), torch.empty(2, 3, 8, 8), architecture="sm_80")
        >>> explanation.rows[0].reason
        'torch.nn layer: lightconv.swap changes it'
    """

    rows: tuple[Row, ...]
    architecture: str

    def __rich__(self) -> Table:
        title = f"on {self.architecture}" if self.architecture else "without a GPU"
        table = Table("layer", "type", "served by", "tile", "reason", title=f"Kernels {title}")
        for row in self.rows:
            table.add_row(row.name, row.layer, row.served_by, row.tile, row.reason)
        return table

    def __str__(self) -> str:
        table = self.__rich__()
        # rich would cut names to fit 120 columns: only the reasons wrap
        for column in table.columns[:-1]:
            column.min_width = max(map(len, map(str, column.cells)))
        console = Console(file=io.StringIO(), width=10_000)
        console.width = max(120, console.measure(table).minimum)
        console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined]


class Call(NamedTuple):
    """Call of a layer.

    Attributes:
        name: name of the layer in the model.
        layer: module called.
        images: input on the meta device, (n, c, h, w) or (c, h, w).
    """

    name: str
    layer: nn.Module
    images: Tensor


class Service(NamedTuple):
    """Implementation of a call: the part of a `Row` after the layer."""

    served_by: str
    tile: str
    reason: str


_LEFT_TO_TORCH = Service("torch", "", "lightconv leaves these arguments to torch")


def explain(model: nn.Module, *inputs: Any, architecture: str | None = None, **named: Any) -> Explanation:
    """Explain per convolution, block and max-pooling of a model which implementation serves its forward pass, and why.

    The model runs on the meta device: nothing is computed, and no GPU is needed. Dtypes are explained as they are,
    without autocast. Measurements of ``lightconv tune`` count if the inputs are on the GPU measured. They depend on
    whether the model is in training or in evaluation.

    Args:
        model: any module. Its torch.nn layers are served by torch.
        inputs: positional arguments of the model.
        architecture: GPU architecture to explain for, such as "sm_90" or "gfx942"; by default that of the inputs'
            device.
        named: keyword arguments of the model.

    Returns:
        A row per layer, in the order of the calls.

    Raises:
        InputError: If no tile table covers the architecture.

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> images = torch.empty(256, 1, 28, 28)
        >>> for row in lc.explain(lc.models.LeNet(), images, architecture="sm_90").rows:
        ...     print(row.name, row.layer, row.served_by)
        conv1 ConvBlock fused implicit GEMM, flattened
        conv2 ConvBlock fused implicit GEMM, flattened
    """
    measured = autotune.NO_ANSWERS
    unsupported_reason = None
    if architecture is None:
        architecture = ""
        tensors = [leaf for leaf in tree_leaves((inputs, named)) if isinstance(leaf, Tensor)]
        unsupported_reason = device_unsupported_reason(tensors)
        if unsupported_reason is None:
            architecture = launch.architecture(tensors[0])
            measured = autotune.answers_for(tensors[0])
    elif not backend.TRITON:
        unsupported_reason = "Triton is not installed"
    elif architecture not in tiles.ARCHITECTURES:
        known = ", ".join(tiles.ARCHITECTURES)
        raise InputError(f"no kernels for architecture {architecture!r}: choose one of {known}")
    # What was measured depends on the gradients needed, so gradients are on in training alone.
    with autotune.override(measured), torch.set_grad_enabled(model.training):
        calls = record_calls(model, inputs, named)
        rows = tuple(explain_call(call, architecture, unsupported_reason) for call in calls)
    return Explanation(rows, architecture)


def device_unsupported_reason(tensors: Sequence[Tensor]) -> str | None:
    """Return why no kernel serves calls on the device of these tensors, None if one may."""
    if not tensors:
        return "no input tensor, so the device is unknown"
    reason = backend.tensor_unsupported_reason(tensors[0])
    if reason is None and tensors[0].device.type == "cpu" and not backend.wants_kernels("cpu"):
        return "the backend uses no kernels on this device"
    return reason


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions, blocks and max-poolings of a model by name, without those absorbed by a fused chain."""
    kinds = nn.Conv2d | nn.MaxPool2d
    return {name: module for name, module in model.named_modules() if issubclass(effective_class(module), kinds)}


def record_calls(model: nn.Module, inputs: Any, named: dict[str, Any]) -> list[Call]:
    """Run a model's forward on the meta device and return the calls of its layers, in order."""
    calls: list[Call] = []

    def build_hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            calls.append(Call(name, layer, arguments[0]))

        return record

    hooks = [layer.register_forward_hook(build_hook(name)) for name, layer in layers(model).items()]
    state = {name: on_meta(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    arguments = tree_map_only(Tensor, on_meta, (inputs, named))
    try:
        # this pass only finds the calls, so torch serves it and nothing is compiled
        with backend.use_backend("reference"), torch.compiler.set_stance("force_eager"):
            functional_call(model, state, *arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def explain_call(call: Call, architecture: str, unsupported_reason: str | None) -> Row:
    """Explain the call of one layer.

    Args:
        call: the call.
        architecture: GPU architecture, "" for none.
        unsupported_reason: why no kernel can serve the device, None if one can.
    """
    kind = effective_class(call.layer, call.images)
    if unsupported_reason is not None:
        service = Service("torch", "", unsupported_reason)
    elif not issubclass(kind, Conv2d | MaxPool2d):
        reason = layer_unsupported_reason(call.layer) or "torch.nn layer: lightconv.swap changes it"
        service = Service("torch", "", reason)
    else:
        # one image without a batch: (c, h, w) -> (1, c, h, w)
        images = call.images.unsqueeze(0) if call.images.dim() == 3 else call.images
        if isinstance(call.layer, MaxPool2d):
            service = explain_max_pool2d(call.layer, images)
        else:
            assert isinstance(call.layer, Conv2d)
            service = explain_convolution(call.layer, images, architecture)
    return Row(call.name, kind.__name__, *service)


def explain_convolution(layer: Conv2d, images: Tensor, architecture: str) -> Service:
    """Explain the call of a convolution or a block on images on the meta device, (n, c, h, w)."""
    images, padding = layer._pad(images)
    weight = on_meta(layer.weight)
    bias = None if layer.bias is None else on_meta(layer.bias)
    arguments = convolution_window(weight, layer.stride, padding, layer.dilation)
    if arguments is None:
        return _LEFT_TO_TORCH
    window, extra = arguments
    # padding="same" adds a row below and a column to the right if the two sides cannot be equal
    images = nn.functional.pad(images, (0, extra[1], 0, extra[0]))
    not_fused = ""
    if isinstance(layer, ConvBlock) and effective_class(layer, images) is not Conv2d:
        pool = pair(layer.pool)
        if pool is None:
            return _LEFT_TO_TORCH
        block = conv_block.dispatch(images, weight, bias, window, layer.groups, layer.activation, pool)
        if block.use_kernel:
            tile, loader = plan_implicit_gemm(images, weight, window, layer.groups, pool, architecture)
            return Service(f"fused implicit GEMM, {loader}", tile, block.reason)
        not_fused = f"not fused ({block.reason}); convolution: "
    dispatch = conv2d.dispatch(images, weight, bias, window, layer.groups)
    reason = not_fused + dispatch.reason
    if not dispatch.use_kernel:
        return Service("torch", "", reason)
    algorithm: str = conv2d.algorithm(tuple(weight.shape), window, layer.groups, images)
    if algorithm == "implicit GEMM":
        tile, loader = plan_implicit_gemm(images, weight, window, layer.groups, (1, 1), architecture)
        return Service(f"{algorithm}, {loader}", tile, reason)
    if algorithm == "depthwise":
        size = output_sizes(images.shape[2:], weight.shape[2:], window)
        target = tiles.nearest_architecture(architecture)
        tile = str(depthwise_plan.forward_tile(images, tuple(weight.shape), size, window.stride, target))
        return Service(algorithm, tile, reason)
    # torch computes a matrix product, in tiles of its own
    return Service(algorithm, "", reason)


def plan_implicit_gemm(
    images: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    pool: tuple[int, int],
    architecture: str,
) -> tuple[str, str]:
    """Return the tile and the loader of an implicit GEMM.

    Args:
        images: (n, c, h, w), on the meta device.
        weight: filters, (k, c / groups, r, s), on the meta device.
        window: stride, padding and dilation.
        groups: groups of channels.
        pool: size of the pooling window, (h, w).
        architecture: GPU architecture.
    """
    height, width = output_sizes(images.shape[2:], weight.shape[2:], window)
    pooled_size = (height // pool[0], width // pool[1])
    target = tiles.nearest_architecture(architecture)
    kind = tiles.arithmetic(images.dtype, launch.dot_precision(images.dtype, target))
    product = implicit_gemm_plan.forward_product(images, weight, pooled_size, window=window, groups=groups, pool=pool)
    # offsets of large tensors need 64 bits, and such kernels have plans of their own
    is_64bit = launch.index_type(images, weight) is tl.int64
    plan = implicit_gemm_plan.select_plan(images, product, target, kind, wide=is_64bit)
    return str(plan.tile), plan.loader


def explain_max_pool2d(layer: MaxPool2d, images: Tensor) -> Service:
    """Explain the call of a max-pooling on images on the meta device, (n, c, h, w)."""
    arguments = pooling_window(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if arguments is None:
        return _LEFT_TO_TORCH
    kernel_size, window = arguments
    dispatch = max_pool2d.dispatch(images, kernel_size, window, layer.ceil_mode, layer.return_indices)
    return Service("gathering" if dispatch.use_kernel else "torch", "", dispatch.reason)
