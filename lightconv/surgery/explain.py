"""Who serves each layer of a model, and why."""

import io
from dataclasses import dataclass
from typing import Any

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
from lightconv.surgery.fuse import acts_as
from lightconv.surgery.swap import layer_unsupported_reason

if backend.TRITON:
    import triton.language as tl

    from lightconv.kernels import depthwise, implicit_gemm, launch, tiles


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: of the module within the model.
        layer: its type.
        served_by: "torch", or lightconv's algorithm.
        tile: of its forward kernel, rows x columns x depth of the product; "" where torch serves.
        reason: for the choice.
    """

    name: str
    layer: str
    served_by: str
    tile: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; printing it draws a table.

    Attributes:
        rows: a row a layer, in the order of the calls.
        architecture: of the GPU for which it holds, "" for none.
    """

    rows: tuple[Row, ...]
    architecture: str

    def __rich__(self) -> Table:
        title = f"on {self.architecture}" if self.architecture else "without a GPU"
        table = Table("layer", "type", "served by", "tile", "reason", title=f"Who serves what {title}")
        for row in self.rows:
            table.add_row(row.name, row.layer, row.served_by, row.tile, row.reason)
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined]


def explain(model: nn.Module, *inputs: Any, architecture: str | None = None, **named: Any) -> Explanation:
    """Say for every convolution, block and max-pooling of a model who serves its forward pass, and why.

    The model runs on stand-ins without values: nothing is computed, and the GPU need not be there. What autocast would
    lower is explained as it is. What ``lightconv tune`` measured counts on the GPU that holds the inputs, in training
    or evaluation as the model is.

    Args:
        model: any module; its layers from torch.nn are listed as torch's.
        inputs: the model's arguments.
        architecture: of the GPU to explain for, such as "sm_90" or "gfx942"; by default that of the inputs' device.
        named: the model's arguments that it takes by name.

    Raises:
        InputError: for an architecture that has no tiles.
    """
    tensors = [t for t in tree_leaves((inputs, named)) if isinstance(t, Tensor)]
    refusal, measured = None, autotune.NO_ANSWERS
    if architecture is None:
        refusal = _device_refusal(*tensors[:1])
        measured = autotune.answers_for(tensors[0]) if refusal is None else autotune.NO_ANSWERS
        architecture = launch.architecture(tensors[0]) if refusal is None else ""
    elif not backend.TRITON:
        refusal = "Triton is not installed"
    elif architecture not in tiles.ARCHITECTURES:
        raise InputError(f"no tiles for architecture {architecture!r}: choose one of {', '.join(tiles.ARCHITECTURES)}")
    with autotune.override(measured), torch.set_grad_enabled(model.training):
        calls = _calls(model, inputs, named)
        rows = [_row(name, module, images, refusal, architecture) for name, module, images in calls]
    return Explanation(tuple(rows), architecture)


def _device_refusal(images: Tensor | None = None) -> str | None:
    """Why no kernel serves where the images are; None if one may."""
    if images is None:
        return "no tensor to tell the device from"
    refusal = backend.tensor_unsupported_reason(images)
    if refusal is None and images.device.type == "cpu" and not backend.wants_kernels("cpu"):
        return "on this device the backend asks for no kernels"
    return refusal


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions, blocks and max-poolings within a model, as it is fused at the moment."""
    return {name: m for name, m in model.named_modules() if issubclass(acts_as(m), nn.Conv2d | nn.MaxPool2d)}


def _calls(model: nn.Module, inputs: Any, named: dict[str, Any]) -> list[tuple[str, nn.Module, Tensor]]:
    """Every layer that a forward pass on stand-ins without values calls, and the images that it is given."""
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Any:
        return lambda module, given, _: calls.append((name, module, given[0]))

    hooks = [module.register_forward_hook(note(name)) for name, module in layers(model).items()]
    state = {name: on_meta(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    try:
        with backend.use_backend("reference"), torch.compiler.set_stance("force_eager"):
            functional_call(model, state, *tree_map_only(Tensor, on_meta, (inputs, named)))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _row(name: str, module: nn.Module, input: Tensor, refusal: str | None, architecture: str) -> Row:
    acts = acts_as(module, input)
    kind = acts.__name__
    if refusal is not None or not issubclass(acts, Conv2d | MaxPool2d):
        reason = refusal or layer_unsupported_reason(module) or "a layer of torch.nn: lightconv.swap changes it"
        return Row(name, kind, "torch", "", reason)
    images = input.unsqueeze(0) if input.dim() == 3 else input
    if isinstance(module, MaxPool2d):
        return Row(name, kind, *_max_pool2d(module, images))
    assert isinstance(module, Conv2d)
    return Row(name, kind, *_convolution(module, images, architecture))


def _convolution(module: Conv2d, images: Tensor, architecture: str) -> tuple[str, str, str]:
    images, padding = module._pad(images)
    weight, bias = on_meta(module.weight), None if module.bias is None else on_meta(module.bias)
    call = convolution_window(weight, module.stride, padding, module.dilation)
    if call is None:
        return "torch", "", "unusual arguments"
    window, extra = call
    images = nn.functional.pad(images, (0, extra[1], 0, extra[0]))
    composed = ""
    if isinstance(module, ConvBlock) and acts_as(module, images) is not Conv2d:
        pool = pair(module.pool)
        if pool is None:
            return "torch", "", "unusual arguments"
        whole = conv_block.dispatch(images, weight, bias, window, module.groups, module.activation, pool)
        if whole.use_kernel:
            tile, loader = _gemm(images, weight, window, module.groups, pool, architecture)
            return f"fused implicit GEMM, {loader}", tile, whole.reason
        composed = f"composed ({whole.reason}); convolution: "
    chosen = conv2d.dispatch(images, weight, bias, window, module.groups)
    if not chosen.use_kernel:
        return "torch", "", composed + chosen.reason
    algorithm: str = conv2d.algorithm(tuple(weight.shape), window, module.groups, images)
    tile = ""
    if algorithm == "implicit GEMM":
        tile, loader = _gemm(images, weight, window, module.groups, (1, 1), architecture)
        algorithm += f", {loader}"
    elif algorithm == "depthwise":
        size = output_sizes(images.shape[2:], weight.shape[2:], window)
        target = tiles.nearest(architecture)
        tile = str(depthwise.tile_of(images, tuple(weight.shape), size, window.stride, target))
    return algorithm, tile, composed + chosen.reason


def _gemm(
    images: Tensor, weight: Tensor, window: Window, groups: int, pool: tuple[int, int], architecture: str
) -> tuple[str, str]:
    height, width = output_sizes(images.shape[2:], weight.shape[2:], window)
    target = tiles.nearest(architecture)
    kind = tiles.arithmetic(images.dtype, launch.dot_precision(images.dtype, target))
    size = (height // pool[0], width // pool[1])
    product = implicit_gemm.forward_product(images, weight, size, window, groups, pool)
    plan = implicit_gemm.decided(images, product, target, kind, launch.index_type(images, weight) is tl.int64)
    return str(plan.tile), plan.loader


def _max_pool2d(module: MaxPool2d, images: Tensor) -> tuple[str, str, str]:
    call = pooling_window(module.kernel_size, module.stride, module.padding, module.dilation)
    if call is None:
        return "torch", "", "unusual arguments"
    chosen = max_pool2d.dispatch(images, *call, module.ceil_mode, module.return_indices)
    return "gathering" if chosen.use_kernel else "torch", "", chosen.reason
