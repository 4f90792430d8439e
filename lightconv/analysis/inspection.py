"""Inspection of a network's kernels without their GPU: compiled code, occupancy and predicted times."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightconv.analysis import gpus, prediction
from lightconv.analysis.compilation import Call, CompiledKernel, Launch, compile_kernels, training_step
from lightconv.analysis.gpus import GPU
from lightconv.analysis.layers import Layer, group_equal_layers
from lightconv.analysis.machine_code import count, load_bits, store_bits
from lightconv.analysis.traffic import distinct_bytes


class KernelReport(NamedTuple):
    """Figures of one kernel of one layer.

    Attributes:
        layer: name of the first layer with this kernel.
        operator: lightconv operator of the launch: "conv_block", "conv2d_weight_gradient", ...
        kernel: name of the algorithm.
        tile: part of the result computed by a block.
        loads: "TMA" for tensor memory access; else the bits per thread of the main loop's loads, wide to narrow.
        stores: bits per thread of all stores, wide to narrow.
        registers: registers per thread.
        spilled: bytes per thread spilled from registers to memory; on AMD the number of spilled registers.
        shared: shared memory per block, in bytes.
        blocks: resident blocks per multiprocessor.
        occupancy: share of a multiprocessor's warps that are resident, from 0 to 1.
        matrix: matrix instructions in the main loop.
        others: other instructions in the main loop.
        divisions: instructions of integer divisions in the main loop.
        outside: instructions outside the main loop.
        code_bytes: size of the machine code, in bytes.
        compile_seconds: compile time in seconds; None if Triton's cache had the kernel.
        seconds: predicted time in seconds, the largest of `prediction.bounds`; None without a data sheet.
        bound: name of the largest bound; "" without a data sheet.
    """

    layer: str
    operator: str
    kernel: str
    tile: str
    loads: str
    stores: str
    registers: int
    spilled: int
    shared: int
    blocks: int
    occupancy: float
    matrix: int
    others: int
    divisions: int
    outside: int
    code_bytes: int
    compile_seconds: float | None
    seconds: float | None
    bound: str

    @property
    def instructions_per_matrix_instruction(self) -> float | None:
        """Other instructions of the main loop per matrix instruction; None without matrix instructions."""
        if self.matrix == 0:
            return None
        return self.others / self.matrix


class LayerReport(NamedTuple):
    """Predicted seconds of one layer of a network on one GPU: lower bounds, for lightconv and for torch.

    Attributes:
        layer: name of the first layer of this kind.
        times: number of layers of this kind in the network, a count.
        sizes: sizes of image and filters, and the options, as text; see `Layer.sizes`.
        operations: multiplications and additions of the forward pass.
        bytes: least number of bytes moved by the forward pass.
        forward: forward pass by lightconv's kernels, in seconds.
        backward: backward pass by lightconv's kernels, in seconds.
        eager: forward and backward pass by torch if each operator alone reached its roofline, in seconds.
        inductor: forward and backward pass by torch.compile under the same assumption, in seconds.
    """

    layer: str
    times: int
    sizes: str
    operations: int
    bytes: int
    forward: float
    backward: float
    eager: float
    inductor: float

    @property
    def gain(self) -> float:
        """Speed-up of lightconv over eager torch."""
        return self.eager / (self.forward + self.backward)


class Inspection(NamedTuple):
    """Reports on a network.

    Attributes:
        kernels: one report per launch.
        layers: one report per distinct layer; empty without a GPU to predict for.
        codes: compiled kernels, parallel to `kernels`.
    """

    kernels: list[KernelReport]
    layers: list[LayerReport]
    codes: list[CompiledKernel]


class _Step(NamedTuple):
    """The training step of one or more equal layers."""

    layers: list[Layer]
    calls: list[Call]


def inspect(layers: Sequence[Layer], architecture: str, gpu: GPU | None) -> Inspection:
    """Compile and judge every kernel of a training step of every layer.

    Args:
        layers: layers of a network, in order; equal layers are judged once.
        architecture: architecture to compile for, a member of `tiles.ARCHITECTURES`.
        gpu: GPU of that architecture to predict times for; None predicts nothing.

    Raises:
        InputError: If this process interprets kernels.
    """
    steps = []
    launches: list[Launch] = []
    for equal_layers in group_equal_layers(layers):
        first = equal_layers[0]
        calls = training_step(first.module, first.images, architecture)
        steps.append(_Step(equal_layers, calls))
        for call in calls:
            launches += call.launches
    # all layers at once, because kernels compile in parallel
    codes = compile_kernels(launches)

    kernel_reports: list[KernelReport] = []
    layer_reports: list[LayerReport] = []
    remaining = iter(zip(launches, codes, strict=True))
    for step in steps:
        reports_by_call = []
        for call in step.calls:
            reports = []
            for _ in call.launches:
                launch, code = next(remaining)
                reports.append(report_kernel(step.layers[0].name, call.operator, launch, code, gpu))
            reports_by_call.append(reports)
            kernel_reports += reports
        if gpu is not None:
            layer_reports.append(report_layer(step, reports_by_call, gpu))
    return Inspection(kernel_reports, layer_reports, codes)


def report_kernel(layer: str, operator: str, launch: Launch, code: CompiledKernel, gpu: GPU | None) -> KernelReport:
    """Return the figures of one compiled launch."""
    counted = count(code.loop)
    resources = (launch.architecture, code.warps, code.registers, code.shared)
    seconds, bound = None, ""
    if gpu is not None:
        bounds = prediction.bounds(launch, code, gpu)
        seconds, bound = bounds.seconds, bounds.name
    return KernelReport(
        layer=layer,
        operator=operator,
        kernel=code.name,
        tile=describe_tile(launch),
        loads=_describe_loads(code),
        stores=" ".join(map(str, store_bits(code.code))),
        registers=code.registers,
        spilled=code.spilled,
        shared=code.shared,
        blocks=gpus.blocks_at_once(*resources),
        occupancy=gpus.occupancy(*resources),
        matrix=counted["matrix"],
        others=len(code.loop) - counted["matrix"],
        divisions=counted["division"],
        outside=len(code.code) - len(code.loop),
        code_bytes=code.code_bytes,
        compile_seconds=code.seconds,
        seconds=seconds,
        bound=bound,
    )


def describe_tile(launch: Launch) -> str:
    """Return the sizes of a block's part of the result, and the loader of its inputs: "128x64x32 pointers".

    The sizes are rows x columns x depth of a matrix product, pixels x channels, or elements.
    """
    arguments = launch.arguments
    names = ("PARTS", "ROWS", "FILTERS", "TAPS", "COLUMNS", "CHANNELS", "DEPTH", "BLOCK")
    tile = "x".join(str(arguments[name]) for name in names if name in arguments)
    if "LOADER" in arguments:
        return f"{tile} {arguments['LOADER']}"
    if arguments.get("FLATTENED_CHANNELS"):
        return f"{tile} flattened"
    return tile


def _describe_loads(code: CompiledKernel) -> str:
    for instruction in code.code:
        if instruction.opcode.startswith("UTMALDG"):
            return "TMA"
    # a kernel without a loop loads everything before it computes
    widths = load_bits(code.loop) or load_bits(code.code)
    return " ".join(map(str, widths))


def report_layer(step: _Step, reports_by_call: list[list[KernelReport]], gpu: GPU) -> LayerReport:
    """Return the predicted times of a layer.

    Args:
        step: training step of the layer.
        reports_by_call: kernel reports per call of the step.
        gpu: GPU to predict for.
    """
    layer = step.layers[0]
    seconds, forward_seconds = [], []
    for call, reports in zip(step.calls, reports_by_call, strict=True):
        if reports:
            call_seconds = sum(report.seconds or 0.0 for report in reports)
        else:
            # torch's matrix product serves a call without launches
            call_seconds = prediction.by_matrix_product(layer, gpu)
        seconds.append(call_seconds)
        if "gradient" not in call.operator and "backward" not in call.operator:
            forward_seconds.append(call_seconds)
    forward = sum(forward_seconds)
    with torch.no_grad():
        # a fused layer moves its images, its parameters and its output, each once
        moved = distinct_bytes([layer.images, *layer.unfused.parameters(), layer.unfused(layer.images)])
    return LayerReport(
        layer=layer.name,
        times=len(step.layers),
        sizes=layer.sizes,
        operations=prediction.products(layer),
        bytes=moved,
        forward=forward,
        backward=sum(seconds) - forward,
        eager=sum(prediction.by_eager_torch(layer, gpu)),
        inductor=sum(prediction.by_inductor(layer, gpu)),
    )
