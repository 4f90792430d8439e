"""How long a kernel would take on a GPU that is not here, by the bounds that its machine code and its sizes set.

==========  ==================================================================================================
arithmetic  products that the busiest multiprocessor computes, overhang of tiles and last wave included, at the
            data sheet's rate
memory      every tensor once, at the data sheet's bandwidth
tiling      what the blocks of the busiest multiprocessor load and store, at `_L2_BYTES` a cycle
issue       instructions of the busiest multiprocessor, one a cycle for each of its schedulers
latency     a block's first load, its last store and each step that no earlier stage has loaded ahead wait
            `_LATENCY` cycles; blocks that are resident together wait together
launch      `LAUNCH_SECONDS`: less than that no kernel takes
==========  ==================================================================================================

The largest is the predicted time. Where a multiprocessor holds a single block, what stands outside of the main loop
hides behind nothing and is added to the loop. Nothing is said of what bounds leave out: bank conflicts, caches that
miss, clocks under load, how bounds of about the same size add up. The prediction tells two kernels apart whose bounds
differ; its seconds are a lower bound, and `published` says how far below.

Torch's side is given more: every operator at its roofline, as if cuDNN reached the data sheet's rate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightconv.analysis.compilation import Compiled, Launch
from lightconv.analysis.gpus import GPU, MULTIPROCESSOR, blocks_at_once
from lightconv.analysis.layers import Layer
from lightconv.analysis.machine_code import bits_loaded, multiply_adds
from lightconv.analysis.traffic import Operator, distinct_bytes, passes
from lightconv.kernels import weight_gradient
from lightconv.kernels.launch import dot_precision
from lightconv.kernels.tiles import arithmetic
from lightconv.operators.backend import use_backend

LAUNCH_SECONDS = 2e-6  # from the start of a kernel to that of the next, which depends on it
_L2_BYTES = 64  # a cycle and multiprocessor
_LATENCY = 500  # cycles from a load to its data, between those of the second level cache and of memory


class Bounds(NamedTuple):
    """Seconds that a kernel takes at least, for each reason."""

    arithmetic: float
    memory: float
    tiling: float
    issue: float
    latency: float
    launch: float

    @property
    def seconds(self) -> float:
        """The predicted time."""
        return max(self)

    @property
    def name(self) -> str:
        """Of the bound that decides."""
        return max(zip(self, self._fields, strict=True))[1]


class Work(NamedTuple):
    """What a block does, in steps of its main loop.

    Attributes:
        steps: of the loop as it is written.
        multiply_adds: of a step; 0 where it only compares or adds.
        loaded: bytes of a step.
        kind: how numbers are multiplied: "half", "tf32" or "ieee".
        skipped: products that stand in a step's code beside the multiply_adds, and that most blocks skip.
    """

    steps: float
    multiply_adds: float
    loaded: float
    kind: str
    skipped: float = 0


def work(call: Launch) -> Work:
    """What one block of a launch does on average."""
    return _WORK[call.name.partition(".")[0]](call)


def _kind(call: Launch, first: str) -> str:
    dtype = call.arguments[first].dtype
    return "half" if dtype in {torch.float16, torch.bfloat16} else call.arguments["PRECISION"]


def _implicit_gemm(call: Launch) -> Work:
    a = call.arguments
    rows, columns, depth, taps = a["ROWS"], a["COLUMNS"], a["DEPTH"], a["R"] * a["S"]
    if a["LOADER"] == "flattened":
        steps = math.ceil(taps * a["channels"] / depth)
    else:  # the phases of a strided gradient share its taps
        steps = taps / math.prod(a["phases"]) * math.ceil(a["channels"] / depth)
    loaded = (rows + columns) * depth * a["x"].element_size() + (rows * depth if a["EXPANDED"] else 0)
    return Work(steps, rows * columns * depth, loaded, _kind(call, "x"))


def _weight_gradient(call: Launch) -> Work:
    a = call.arguments
    filters, columns, depth = a["FILTERS"], a["COLUMNS"], a["DEPTH"]
    steps = a["units"] * math.ceil(a["size"][1] / a["PATCH_W"])
    loaded = (filters + columns) * depth * a["x"].element_size() + (filters * depth if a["EXPANDED"] else 0)
    kind = _kind(call, "x")
    bias = filters * weight_gradient.ONES.value * depth if a["BIAS"] and kind == "half" else 0
    return Work(steps, filters * columns * depth, loaded, kind, bias)


def _depthwise(call: Launch) -> Work:
    a = call.arguments
    pixels, channels = a["ROWS"] * a["COLUMNS"], a.get("FILTERS", a.get("CHANNELS"))
    image = a["x"] if "x" in a else a["g"]
    if "rectangles_a_split" in a:
        both = 2 * pixels * channels * image.element_size()
        return Work(a["rectangles_a_split"], pixels * a["TAPS"] * channels, both, "ieee")
    taps = a["R"] * a["S"] / math.prod(a.get("phases", (1,)))
    return Work(taps, pixels * channels, pixels * channels * image.element_size(), "ieee")


def _max_pooling(call: Launch) -> Work:
    a = call.arguments
    tensors = [a["x"]] if "x" in a else [a["g"], a["where"]]
    loaded = a["BLOCK"] * sum(t.element_size() for t in tensors)
    return Work(1 if a.get("SIDE_BY_SIDE") else a["R"] * a["S"], 0, loaded, "ieee")


def _ordered_sum(call: Launch) -> Work:
    a = call.arguments
    return Work(math.ceil(a["splits"] / a["PARTS"]), 0, a["PARTS"] * a["BLOCK"] * 4, "ieee")


_WORK = {
    "implicit_gemm": _implicit_gemm,
    "weight_gradient": _weight_gradient,
    "depthwise": _depthwise,
    "max_pooling": _max_pooling,
    "ordered_sum": _ordered_sum,
}


def bounds(call: Launch, kernel: Compiled, gpu: GPU) -> Bounds:
    """What bounds a launch on a GPU of the architecture that it was recorded and compiled for."""
    unit, block = MULTIPROCESSOR[gpu.architecture], work(call)
    blocks = math.ceil(math.prod(call.grid) / gpu.multiprocessors)  # of the busiest multiprocessor
    repeats = _repeats(kernel, block)
    inside = repeats * len(kernel.loop) * kernel.warps / unit.schedulers
    outside = (len(kernel.code) - len(kernel.loop)) * kernel.warps / unit.schedulers
    computing = 2 * block.steps * block.multiply_adds / (gpu.peak(block.kind) / gpu.multiprocessors / gpu.clock)
    issue, arithmetic = inside + outside, computing
    together = max(1, blocks_at_once(gpu.architecture, kernel.warps, kernel.registers, kernel.shared))
    if together < 2:
        arithmetic, issue = computing + outside, max(inside, computing) + outside
    loaded = block.steps * block.loaded / _L2_BYTES
    ahead = max(1, call.options.get("num_stages", 1) - 1)
    waited = _LATENCY * (2 + repeats / ahead) / min(together, blocks)
    arithmetic, loaded, issue, waited = (n * blocks / gpu.clock for n in (arithmetic, loaded, issue, waited))
    memory = distinct_bytes(t for t in call.arguments.values() if isinstance(t, Tensor)) / gpu.bandwidth
    return Bounds(arithmetic, memory, loaded, issue, waited, LAUNCH_SECONDS)


def _repeats(kernel: Compiled, block: Work) -> float:
    """How often the loop of the machine code runs: less often than written where the compiler unrolled it."""
    loop = kernel.loop
    if any(i.opcode.startswith("UTC") for i in loop):  # its shape is in a register; Triton does not unroll it
        return block.steps
    groups = kernel.warps / (4 if any("GMMA" in i.opcode for i in loop) else 1)
    products = groups * sum(map(multiply_adds, loop))
    lanes = MULTIPROCESSOR[kernel.architecture].lanes * kernel.warps
    if not products and block.multiply_adds:
        products = lanes * sum(i.opcode.startswith(("FFMA", "FADD")) for i in loop)
    if products:
        return block.steps * (block.multiply_adds + block.skipped) / products
    loaded = lanes * sum(map(bits_loaded, loop)) / 8
    return block.steps * block.loaded / loaded if loaded else 1.0


class PassSeconds(NamedTuple):
    """A layer's forward and backward pass, every operator at its roofline, in seconds."""

    forward: float
    backward: float


def products(layer: Layer) -> int:
    """Multiplications and additions of a layer's convolution, which each of its gradients takes again."""
    convolution = _convolution(layer)
    if convolution is None:
        return 0
    with torch.no_grad():
        elements = convolution(layer.images).numel()
    return 2 * elements * math.prod(convolution.weight.shape[1:])


def _convolution(layer: Layer) -> nn.Conv2d | None:
    return next((m for m in layer.unfused.modules() if isinstance(m, nn.Conv2d)), None)


def _peak(layer: Layer, gpu: GPU) -> float:
    dtype = layer.images.dtype
    return gpu.peak(arithmetic(dtype, dot_precision(dtype, gpu.architecture)))


def by_eager_torch(layer: Layer, gpu: GPU) -> PassSeconds:
    """The layer of torch.nn, unfused: an operator a kernel, each gradient of a convolution one more."""
    with use_backend("reference"):
        forward, backward, _ = passes(layer.unfused, layer.images)
    once = products(layer) / _peak(layer, gpu)
    computing = {"aten::convolution": once, "aten::convolution_backward": once * (1 + layer.images.requires_grad)}

    def seconds(operators: Sequence[Operator]) -> float:
        return sum(_roofline(o, computing.get(o.name, 0), gpu) for o in operators)

    return PassSeconds(seconds(forward), seconds(backward))


def at_roofline(layer: Layer, gpu: GPU) -> PassSeconds:
    """The layer as one kernel forward and one for each gradient, which move each tensor once: as fast as can be."""
    with torch.no_grad():
        kernel = _one_kernel(layer, [layer.images, layer.unfused(layer.images), *layer.unfused.parameters()], gpu)
    trained = any(p.requires_grad for p in layer.unfused.parameters())
    return PassSeconds(kernel, kernel * (trained + layer.images.requires_grad))


def _roofline(operator: Operator, computing: float, gpu: GPU) -> float:
    moving = (operator.read + operator.written) / gpu.bandwidth
    return max(computing, moving, operator.launches * LAUNCH_SECONDS)


def by_inductor(layer: Layer, gpu: GPU) -> PassSeconds:
    """The layer as torch.compile would run it, by launches and bytes.

    A convolution stays cuDNN's. Activation and pooling become one kernel forward, which reads the map and writes the
    pooled one and a byte a window, and one backward, which reads the pooled gradient, the bytes and, for the
    activation, the map once more, and writes the map's gradient.
    """
    convolution = _convolution(layer)
    if convolution is None:
        return by_eager_torch(layer, gpu)
    bare = by_eager_torch(layer._replace(unfused=convolution), gpu)
    if convolution is layer.unfused:
        return bare
    with torch.no_grad():
        maps = convolution(layer.images)
        pooled = layer.unfused(layer.images)
    whole, small = distinct_bytes([maps]), distinct_bytes([pooled])
    small += pooled.numel() * (pooled.shape != maps.shape)

    def fused(moved: int) -> float:
        return max(moved / gpu.bandwidth, LAUNCH_SECONDS)

    return PassSeconds(bare.forward + fused(whole + small), bare.backward + fused(2 * whole + small))


def by_matrix_product(layer: Layer, gpu: GPU) -> float:
    """A pass of a 1x1 convolution, which torch's matrix product serves, at its roofline."""
    convolution = _convolution(layer)
    assert convolution is not None
    with torch.no_grad():
        return _one_kernel(layer, [layer.images, convolution.weight, convolution(layer.images)], gpu)


def _one_kernel(layer: Layer, moved: Sequence[Tensor], gpu: GPU) -> float:
    """A pass of a layer that takes its products once and moves these tensors."""
    return max(products(layer) / _peak(layer, gpu), distinct_bytes(moved) / gpu.bandwidth, LAUNCH_SECONDS)
