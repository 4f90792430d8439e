"""Kernels judged without their GPU: what compiler, data sheet and arithmetic say of every kernel of a network."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightconv.analysis import gpus, prediction
from lightconv.analysis.compilation import Call, Compiled, Launch, compiled, training_step
from lightconv.analysis.gpus import GPU
from lightconv.analysis.layers import Layer
from lightconv.analysis.machine_code import count, load_bits, store_bits
from lightconv.analysis.traffic import distinct_bytes


class KernelReport(NamedTuple):
    """One kernel of one layer.

    Attributes:
        layer: name of the first layer that runs it so.
        operator: of lightconv that launches it: "conv_block", "conv2d_weight_gradient", ...
        kernel: algorithm.
        tile: what a block computes.
        loads: how the main loop's data arrive: "TMA", or the bits that a thread's loads bring at once, wide to narrow.
        stores: bits that a thread's stores write at once, wide to narrow.
        registers: of a thread.
        spilled: bytes of a thread that its registers did not hold; AMD: registers.
        shared: bytes of a block.
        blocks: of a multiprocessor at a time.
        occupancy: share of a multiprocessor's warps that are resident.
        matrix: matrix instructions of the main loop.
        others: other instructions of the main loop.
        divisions: integer divisions in the main loop.
        outside: instructions outside of the main loop.
        code_bytes: of the machine code.
        compile_seconds: None if Triton had it in its cache.
        seconds: predicted, as `prediction.bounds` bounds it; None without a data sheet.
        bound: what decides the prediction.
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
    def dragged(self) -> float | None:
        """Other instructions of the main loop for each matrix instruction; None without any."""
        return self.others / self.matrix if self.matrix else None


class LayerReport(NamedTuple):
    """One layer of a network on one GPU, predicted; seconds.

    Attributes:
        layer: name of the first layer of this kind.
        times: how often the network has a layer of this kind.
        sizes: as `Layer.sizes`.
        operations: multiplications and additions of the forward pass.
        bytes: that the forward pass has to move.
        forward: by lightconv's kernels.
        backward: by lightconv's kernels.
        eager: torch's forward and backward, unfused, every operator at its roofline.
        inductor: the same by torch.compile.
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
        """How many times lightconv is faster than eager torch."""
        return self.eager / (self.forward + self.backward)


class Inspection(NamedTuple):
    """All of a network; `codes` are the machine codes of `kernels`."""

    kernels: list[KernelReport]
    layers: list[LayerReport]
    codes: list[Compiled]


def inspect(layers: Sequence[Layer], architecture: str, gpu: GPU | None) -> Inspection:
    """Compile every kernel of a training step of every layer, and judge it.

    Args:
        layers: of a network, in order; layers of equal sizes are judged once.
        architecture: one of `tiles.ARCHITECTURES`.
        gpu: of that architecture, to predict for; None predicts nothing.
    """
    distinct: dict[str, list[Layer]] = {}
    for layer in layers:
        distinct.setdefault(f"{layer} {layer.images.requires_grad}", []).append(layer)
    firsts = [same[0] for same in distinct.values()]
    steps = [training_step(layer.module, layer.images, architecture) for layer in firsts]
    launches = [launch for calls in steps for call in calls for launch in call.launches]
    codes = compiled(launches)
    given = iter(zip(launches, codes, strict=True))
    kernels, reports = [], []
    for same, calls in zip(distinct.values(), steps, strict=True):
        rows = [[_kernel(same[0], call, *next(given), gpu) for _ in call.launches] for call in calls]
        kernels += [row for of_call in rows for row in of_call]
        if gpu is not None:
            reports.append(_layer(same, calls, rows, gpu))
    return Inspection(kernels, reports, codes)


def _kernel(layer: Layer, call: Call, launch: Launch, code: Compiled, gpu: GPU | None) -> KernelReport:
    counted = count(code.loop)
    fit = (launch.architecture, code.warps, code.registers, code.shared)
    bounds = None if gpu is None else prediction.bounds(launch, code, gpu)
    return KernelReport(
        layer=layer.name,
        operator=call.operator,
        kernel=code.name,
        tile=tile_of(launch),
        loads=_loads(code),
        stores=" ".join(map(str, store_bits(code.code))),
        registers=code.registers,
        spilled=code.spilled,
        shared=code.shared,
        blocks=gpus.blocks_at_once(*fit),
        occupancy=gpus.occupancy(*fit),
        matrix=counted["matrix"],
        others=len(code.loop) - counted["matrix"],
        divisions=counted["division"],
        outside=len(code.code) - len(code.loop),
        code_bytes=code.code_bytes,
        compile_seconds=code.seconds,
        seconds=bounds.seconds if bounds else None,
        bound=bounds.name if bounds else "",
    )


def tile_of(launch: Launch) -> str:
    """What a block computes: rows x columns x depth of a product, pixels x channels, or elements."""
    sizes = launch.arguments
    names = [n for n in ("PARTS", "ROWS", "FILTERS", "TAPS", "COLUMNS", "CHANNELS", "DEPTH", "BLOCK") if n in sizes]
    loader = f" {sizes['LOADER']}" if "LOADER" in sizes else " flattened" if sizes.get("FEW") else ""
    return "x".join(str(sizes[name]) for name in names) + loader


def _loads(code: Compiled) -> str:
    if any(i.opcode.startswith("UTMALDG") for i in code.code):
        return "TMA"
    return " ".join(map(str, load_bits(code.loop) or load_bits(code.code)))


def _layer(same: list[Layer], calls: list[Call], rows: list[list[KernelReport]], gpu: GPU) -> LayerReport:
    layer = same[0]
    seconds = [
        sum(row.seconds or 0 for row in of_call) if of_call else prediction.by_matrix_product(layer, gpu)
        for of_call in rows
    ]
    forward = sum(
        s for call, s in zip(calls, seconds, strict=True) if not re.search("gradient|backward", call.operator)
    )
    eager, inductor = prediction.by_eager_torch(layer, gpu), prediction.by_inductor(layer, gpu)
    with torch.no_grad():
        moved = distinct_bytes([layer.images, *layer.unfused.parameters(), layer.unfused(layer.images)])
    return LayerReport(
        layer=layer.name,
        times=len(same),
        sizes=layer.sizes,
        operations=prediction.products(layer),
        bytes=moved,
        forward=forward,
        backward=sum(seconds) - forward,
        eager=sum(eager),
        inductor=sum(inductor),
    )
