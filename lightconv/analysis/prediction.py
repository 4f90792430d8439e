"""Predicted time of a kernel on a GPU that is not present: lower bounds from its machine code and its sizes.

==========  ==================================================================================================
arithmetic  products of the busiest multiprocessor at the data sheet's rate, including overhanging tiles and the
            last, partly filled wave of blocks
memory      every tensor moved once, at the data sheet's bandwidth
tiling      loads and stores by the blocks of the busiest multiprocessor, at `_L2_BYTES` per cycle
issue       instructions of the busiest multiprocessor, one per cycle and scheduler
latency     `_LATENCY` cycles for a block's first load, its last store, and each step not loaded ahead by an
            earlier pipeline stage; resident blocks wait at the same time
launch      `LAUNCH_SECONDS`: no kernel takes less
==========  ==================================================================================================

The predicted time is the largest bound. If a multiprocessor holds a single block, nothing hides the instructions
outside of the main loop, so their time is added to the loop's. The model leaves out bank conflicts, cache misses,
clocks under load, and the way in which bounds of about the same size add up. It separates kernels with different
bounds. Its seconds are a lower bound; `published` measures how far below the truth they lie.

Torch's side is favoured: every operator is put at its roofline, as if cuDNN reached the data sheet's rate.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightconv.analysis.compilation import CompiledKernel, Launch
from lightconv.analysis.gpus import GPU, MULTIPROCESSOR, blocks_at_once
from lightconv.analysis.layers import Layer
from lightconv.analysis.machine_code import Instructions, bits_loaded, multiply_adds
from lightconv.analysis.traffic import Operator, distinct_bytes, passes
from lightconv.kernels import weight_gradient
from lightconv.kernels.launch import dot_precision
from lightconv.kernels.tiles import arithmetic
from lightconv.operators.backend import use_backend

LAUNCH_SECONDS = 2e-6  # seconds from the start of a kernel to the start of the next, dependent one
_L2_BYTES = 64  # bytes per cycle and multiprocessor
_LATENCY = 500  # cycles from a load to its data: between the latencies of the second level cache and of memory


class Bounds(NamedTuple):
    """Lower bounds of a kernel's time, in seconds, by reason.

    Attributes:
        arithmetic: time of the busiest multiprocessor's products.
        memory: time to move every tensor once.
        tiling: time of the busiest multiprocessor's loads and stores.
        issue: time to issue the busiest multiprocessor's instructions.
        latency: time spent waiting for loads.
        launch: time between two launches.
    """

    arithmetic: float
    memory: float
    tiling: float
    issue: float
    latency: float
    launch: float

    @property
    def seconds(self) -> float:
        """Predicted time in seconds: the largest bound."""
        return max(self)

    @property
    def name(self) -> str:
        """Name of the largest bound."""
        _, name = max(zip(self, self._fields, strict=True))
        return name


class Work(NamedTuple):
    """Average work of a block, in steps of its main loop.

    Attributes:
        steps: iterations of the loop as written in the source.
        multiply_adds: multiply-adds per step; 0 if the kernel only compares or adds.
        loaded: bytes loaded per step.
        kind: kind of arithmetic: "half", "tf32" or "ieee".
        skipped: multiply-adds of a step's code that most blocks skip, in addition to `multiply_adds`.
    """

    steps: float
    multiply_adds: float
    loaded: float
    kind: str
    skipped: float = 0


def work(call: Launch) -> Work:
    """Return the average work of one block of a launch."""
    algorithm = call.name.partition(".")[0]
    return _WORK[algorithm](call)


def _arithmetic_kind(call: Launch, operand: str) -> str:
    dtype = call.arguments[operand].dtype
    if dtype in {torch.float16, torch.bfloat16}:
        return "half"
    return str(call.arguments["PRECISION"])


def implicit_gemm_work(call: Launch) -> Work:
    """Return the work of a convolution, or of its input gradient."""
    a = call.arguments
    rows, columns, depth = a["ROWS"], a["COLUMNS"], a["DEPTH"]
    taps = a["R"] * a["S"]
    if a["LOADER"] == "flattened":
        steps = math.ceil(taps * a["channels"] / depth)
    else:
        # the phases of a strided convolution's gradient share its taps
        steps = taps / math.prod(a["phases"]) * math.ceil(a["channels"] / depth)
    loaded = (rows + columns) * depth * a["input_ptr"].element_size()
    if a["POOLED"]:
        # one byte of window position per element of the pooled gradient
        loaded += rows * depth
    return Work(steps, rows * columns * depth, loaded, _arithmetic_kind(call, "input_ptr"))


def weight_gradient_work(call: Launch) -> Work:
    """Return the work of a weight gradient's partial sums."""
    a = call.arguments
    filters, columns, depth = a["FILTERS"], a["COLUMNS"], a["DEPTH"]
    steps = a["units"] * math.ceil(a["size"][1] / a["PATCH_W"])
    loaded = (filters + columns) * depth * a["input_ptr"].element_size()
    if a["POOLED"]:
        # one byte of window position per element of the pooled gradient
        loaded += filters * depth
    kind = _arithmetic_kind(call, "input_ptr")
    skipped = 0
    if a["BIAS"] and kind == "half":
        # the bias gradient is a product with a few columns of ones, taken by the first block of columns only
        skipped = filters * weight_gradient.BIAS_COLUMNS.value * depth
    return Work(steps, filters * columns * depth, loaded, kind, skipped)


def depthwise_work(call: Launch) -> Work:
    """Return the work of a depthwise convolution, or of one of its gradients."""
    a = call.arguments
    pixels = a["ROWS"] * a["COLUMNS"]
    channels = a.get("FILTERS", a.get("CHANNELS"))
    image = a["input_ptr"] if "input_ptr" in a else a["grad_output_ptr"]
    image_bytes = pixels * channels * image.element_size()
    if "rectangles_per_split" in a:
        # the weight gradient reads the image and the gradient, and multiplies them for every tap
        return Work(a["rectangles_per_split"], pixels * a["TAPS"] * channels, 2 * image_bytes, "ieee")
    taps = a["R"] * a["S"] / math.prod(a.get("phases", (1,)))
    return Work(taps, pixels * channels, image_bytes, "ieee")


def max_pooling_work(call: Launch) -> Work:
    """Return the work of a max-pooling, or of its gradient."""
    a = call.arguments
    # forward reads the image, backward the gradient and the window positions
    tensors = [a["input_ptr"]] if "input_ptr" in a else [a["grad_output_ptr"], a["argmax_ptr"]]
    element_bytes = sum(tensor.element_size() for tensor in tensors)
    # if windows lie side by side, each element belongs to one window
    steps = 1 if a.get("SIDE_BY_SIDE") else a["R"] * a["S"]
    return Work(steps, 0, a["BLOCK"] * element_bytes, "ieee")


def ordered_sum_work(call: Launch) -> Work:
    """Return the work of the sum over a weight gradient's partial sums."""
    a = call.arguments
    steps = math.ceil(a["splits"] / a["PARTS"])
    float32_bytes = 4
    return Work(steps, 0, a["PARTS"] * a["BLOCK"] * float32_bytes, "ieee")


_WORK = {
    "implicit_gemm": implicit_gemm_work,
    "weight_gradient": weight_gradient_work,
    "depthwise": depthwise_work,
    "max_pooling": max_pooling_work,
    "ordered_sum": ordered_sum_work,
}


def bounds(call: Launch, kernel: CompiledKernel, gpu: GPU) -> Bounds:
    """Return the lower bounds of a launch's time on a GPU: one per limit, such as memory and arithmetic, in seconds.

    Args:
        call: recorded launch.
        kernel: compiled kernel of the launch.
        gpu: GPU of the kernel's architecture.
    """
    unit = MULTIPROCESSOR[gpu.architecture]
    block = work(call)
    repeats = loop_repeats(kernel, block)
    # blocks of the busiest multiprocessor, and how many of them are resident at a time
    blocks = math.ceil(math.prod(call.grid) / gpu.multiprocessors)
    resident = max(1, blocks_at_once(gpu.architecture, kernel.warps, kernel.registers, kernel.shared))

    # cycles per block
    inside = repeats * len(kernel.loop) * kernel.warps / unit.schedulers
    outside = (len(kernel.code) - len(kernel.loop)) * kernel.warps / unit.schedulers
    operations_per_cycle = gpu.peak(block.kind) / gpu.multiprocessors / gpu.clock
    computing = 2 * block.steps * block.multiply_adds / operations_per_cycle
    if resident == 1:
        # nothing hides the instructions outside of the loop
        arithmetic_cycles = computing + outside
        issue_cycles = max(inside, computing) + outside
    else:
        arithmetic_cycles = computing
        issue_cycles = inside + outside
    tiling_cycles = block.steps * block.loaded / _L2_BYTES
    stages_ahead = max(1, call.options.get("num_stages", 1) - 1)
    # the first load, the last store, and each step not loaded ahead
    latency_cycles = _LATENCY * (2 + repeats / stages_ahead) / min(resident, blocks)

    # cycles per block -> seconds of the busiest multiprocessor
    tensors = filter(lambda value: isinstance(value, Tensor), call.arguments.values())
    return Bounds(
        arithmetic=arithmetic_cycles * blocks / gpu.clock,
        memory=distinct_bytes(tensors) / gpu.bandwidth,
        tiling=tiling_cycles * blocks / gpu.clock,
        issue=issue_cycles * blocks / gpu.clock,
        latency=latency_cycles * blocks / gpu.clock,
        launch=LAUNCH_SECONDS,
    )


def loop_repeats(kernel: CompiledKernel, block: Work) -> float:
    """Return how often the machine code's loop runs: less often than `block.steps` if the compiler unrolled it."""
    loop = kernel.loop
    if _has_opcode(loop, "UTC"):
        # the shape of this matrix instruction is in a register; Triton does not unroll its loop
        return block.steps
    lanes = MULTIPROCESSOR[kernel.architecture].lanes * kernel.warps
    # a group of four warps shares one HGMMA
    issuers = kernel.warps / 4 if _has_opcode(loop, "[A-Z]GMMA") else kernel.warps
    products = issuers * sum(map(multiply_adds, loop))
    if not products and block.multiply_adds:
        plain = [i for i in loop if i.opcode.startswith(("FFMA", "FADD"))]
        products = lanes * len(plain)
    if products:
        return block.steps * (block.multiply_adds + block.skipped) / products
    # without products the loop's loads are compared
    loaded = lanes * sum(map(bits_loaded, loop)) / 8
    if loaded:
        return block.steps * block.loaded / loaded
    return 1.0


def _has_opcode(code: Instructions, pattern: str) -> bool:
    return any(re.match(pattern, instruction.opcode) for instruction in code)


class PassSeconds(NamedTuple):
    """Times of a layer's two passes with every operator at its roofline, in seconds.

    Attributes:
        forward: time of the forward pass.
        backward: time of the backward pass.
    """

    forward: float
    backward: float


def products(layer: Layer) -> int:
    """Return the multiplications and additions of a layer's convolution; each of its gradients takes as many."""
    convolution = _find_convolution(layer)
    if convolution is None:
        return 0
    with torch.no_grad():
        elements = convolution(layer.images).numel()
    return 2 * elements * math.prod(convolution.weight.shape[1:])


def _find_convolution(layer: Layer) -> nn.Conv2d | None:
    for module in layer.unfused.modules():
        if isinstance(module, nn.Conv2d):
            return module
    return None


def _peak(layer: Layer, gpu: GPU) -> float:
    """Return the rate of the layer's kind of arithmetic, in operations per second."""
    dtype = layer.images.dtype
    return gpu.peak(arithmetic(dtype, dot_precision(dtype, gpu.architecture)))


def by_eager_torch(layer: Layer, gpu: GPU) -> PassSeconds:
    """Predict the unfused layer of torch.nn: one kernel per operator, and one per gradient of a convolution."""
    with use_backend("reference"):
        forward, backward, _ = passes(layer.unfused, layer.images)
    one_product = products(layer) / _peak(layer, gpu)
    gradients = 2 if layer.images.requires_grad else 1
    computing = {"aten::convolution": one_product, "aten::convolution_backward": gradients * one_product}

    def seconds(operators: Sequence[Operator]) -> float:
        return sum(operator_roofline(operator, computing.get(operator.name, 0), gpu) for operator in operators)

    return PassSeconds(seconds(forward), seconds(backward))


def at_roofline(layer: Layer, gpu: GPU) -> PassSeconds:
    """Predict the fastest possible layer: one kernel forward and one per gradient, each moving every tensor once."""
    parameters = list(layer.unfused.parameters())
    with torch.no_grad():
        kernel = _one_kernel(layer, [layer.images, layer.unfused(layer.images), *parameters], gpu)
    is_trained = any(parameter.requires_grad for parameter in parameters)
    gradients = is_trained + layer.images.requires_grad
    return PassSeconds(kernel, kernel * gradients)


def operator_roofline(operator: Operator, computing: float, gpu: GPU) -> float:
    """Return the time of one of torch's operators at its roofline, in seconds.

    Args:
        operator: operator with its bytes and launches.
        computing: time of its products at the data sheet's rate, in seconds.
        gpu: data sheet.
    """
    moving = (operator.read + operator.written) / gpu.bandwidth
    return max(computing, moving, operator.launches * LAUNCH_SECONDS)


def by_inductor(layer: Layer, gpu: GPU) -> PassSeconds:
    """Predict the layer under torch.compile, from its launches and bytes.

    cuDNN still serves the convolution. Activation and pooling become one kernel forward and one backward. The forward
    kernel reads the map, and writes the pooled map and one byte per window. The backward kernel reads the pooled
    gradient, the bytes and, for the activation, the map once more; it writes the map's gradient.
    """
    convolution = _find_convolution(layer)
    if convolution is None:
        return by_eager_torch(layer, gpu)
    bare = by_eager_torch(layer._replace(unfused=convolution), gpu)
    if convolution is layer.unfused:
        return bare
    with torch.no_grad():
        maps = convolution(layer.images)
        pooled = layer.unfused(layer.images)
    map_bytes = distinct_bytes([maps])
    pooled_bytes = distinct_bytes([pooled])
    if pooled.shape != maps.shape:
        # one byte of window position per pooled element
        pooled_bytes += pooled.numel()

    def fused(moved: int) -> float:
        return max(moved / gpu.bandwidth, LAUNCH_SECONDS)

    return PassSeconds(
        forward=bare.forward + fused(map_bytes + pooled_bytes),
        backward=bare.backward + fused(2 * map_bytes + pooled_bytes),
    )


def by_matrix_product(layer: Layer, gpu: GPU) -> float:
    """Return the time of one pass of a 1x1 convolution by torch's matrix product at its roofline, in seconds."""
    convolution = _find_convolution(layer)
    assert convolution is not None
    with torch.no_grad():
        return _one_kernel(layer, [layer.images, convolution.weight, convolution(layer.images)], gpu)


def _one_kernel(layer: Layer, moved: Sequence[Tensor], gpu: GPU) -> float:
    """Return the time of one kernel that takes the layer's products once and moves the tensors once, in seconds."""
    return max(products(layer) / _peak(layer, gpu), distinct_bytes(moved) / gpu.bandwidth, LAUNCH_SECONDS)
