"""Tables and listings of an inspection for the terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lightconv.analysis import published
from lightconv.analysis.inspection import Inspection, KernelReport, LayerReport
from lightconv.analysis.machine_code import mark_main_loop
from lightconv.cli import tables
from lightconv.cli.inspect.subjects import ONE_LAYER, Inspected
from lightconv.errors import InputError

_KERNEL_LEGEND = """\
x4: four layers run this kernel; regs: registers per thread; spilt: bytes spilled per thread; shared: KiB
of shared memory per block; blocks, warps: resident per multiprocessor at a time; s: seconds of compile
time, unless Triton's cache had the kernel; mma: matrix instructions in the main loop; others: other
instructions per matrix instruction; outside: instructions outside the main loop; code: KiB; loads,
stores: bits per thread and access
"""
PREDICTION_LEGEND = """\
forward, backward: lightconv's kernels, each at its largest bound; torch, compiled: torch's forward and
backward with every operator at the data sheet's rate, which cuDNN does not reach; gain: torch / lightconv
"""
# columns that share a cell, one above the other: fourteen columns side by side are wider than a terminal
_KERNEL_CELLS = (
    ("kernel", "tile"),
    ("regs", "spilt"),
    ("shared", "blocks"),
    ("warps", "s"),
    ("mma", "others"),
    ("outside", "code"),
    ("loads", "stores"),
)
_LAYER_CELLS = (("layer",), ("times", "gain"), ("forward", "backward"), ("torch", "compiled"), ("slowest by",))
_LAYER_WIDTH = 26  # characters


def print_tables(inspected: Inspected) -> None:
    """Print the kernels of a subject and, if a GPU is known, the predicted times of its layers."""
    subject, inspection = inspected
    kernels = [tables.stack_columns(row, _KERNEL_CELLS) for row in kernel_rows(inspection)]
    tables.show_rows(f"kernels of {subject.title}", kernels, dense=True)
    print(_KERNEL_LEGEND)
    if inspection.layers:
        predicted = [tables.stack_columns(wrap_layer(row), _LAYER_CELLS) for row in layer_rows(inspection)]
        tables.show_rows(f"{subject.title}, predicted, µs", predicted, dense=True)
        print(PREDICTION_LEGEND)


def kernel_rows(inspection: Inspection) -> list[dict[str, Any]]:
    """Return one row per distinct kernel, with the number of layers sharing it."""
    reports: dict[tuple[Any, ...], KernelReport] = {}
    layers: dict[tuple[Any, ...], int] = {}
    for report in inspection.kernels:
        # layers of other sizes may share a kernel: their name and time are no property of it
        shared = report._replace(layer="", seconds=None, bound="", compile_seconds=None)
        reports.setdefault(shared, report)
        layers[shared] = layers.get(shared, 0) + 1
    return [kernel_row(report, layers[shared]) for shared, report in reports.items()]


def kernel_row(report: KernelReport, layers: int) -> dict[str, Any]:
    """Return the row of a kernel, with the units of the legend.

    Args:
        report: kernel of the first layer.
        layers: number of layers sharing the kernel.
    """
    name = report.kernel
    if layers > 1:
        name += f" x{layers}"
    ratio = report.instructions_per_matrix_instruction
    seconds = report.compile_seconds
    return {
        "kernel": name,
        "tile": report.tile,
        "regs": report.registers,
        "spilt": report.spilled,
        "shared": f"{report.shared / 1024:.0f}",
        "blocks": report.blocks,
        "warps": f"{report.occupancy:.0%}",
        "s": "" if seconds is None else f"{seconds:.1f}",
        "mma": report.matrix or "",
        "others": "" if ratio is None else f"{ratio:.1f}",
        "outside": str(report.outside),
        "code": f"{report.code_bytes / 1024:.0f}",
        "loads": report.loads.replace(" ", "/"),
        "stores": report.stores.replace(" ", "/"),
    }


def layer_rows(inspection: Inspection) -> list[dict[str, Any]]:
    """Return one row per distinct layer with its predicted times, and a row for the whole network."""
    slowest: dict[str, KernelReport] = {}
    for report in sorted(inspection.kernels, key=lambda report: report.seconds or 0):
        # sorted by time, so the last kernel of a layer stays
        slowest[report.layer] = report
    rows = []
    times = 0
    total = dict.fromkeys(("forward", "backward", "eager", "inductor"), 0.0)
    for layer in inspection.layers:
        rows.append(layer_row(layer, slowest.get(layer.layer)))
        times += layer.times
        for column in total:
            total[column] += layer.times * getattr(layer, column)
    return [*rows, _time_row("all", times, total, "")]


def layer_row(layer: LayerReport, slowest: KernelReport | None) -> dict[str, Any]:
    """Return the row of a layer and its slowest kernel; None for the kernel if torch serves the whole layer."""
    # no kernel of this layer was launched, so torch serves it
    bound = "torch's\nmatrix product" if slowest is None else f"{slowest.bound}\n{slowest.kernel}"
    return _time_row(f"{layer.layer}\n{layer.sizes}", layer.times, layer._asdict(), bound)


def _time_row(name: str, times: int, seconds: Mapping[str, float], bound: str) -> dict[str, Any]:
    """Return a row with times in microseconds."""
    ours = seconds["forward"] + seconds["backward"]
    return {
        "layer": name,
        "times": times,
        "forward": _microseconds(seconds["forward"]),
        "backward": _microseconds(seconds["backward"]),
        "torch": _microseconds(seconds["eager"]),
        "compiled": _microseconds(seconds["inductor"]),
        "gain": f"{seconds['eager'] / ours:.2f}",
        "slowest by": bound,
    }


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def wrap_layer(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the layer's name and sizes wrapped to the width of a terminal's table."""
    lines = []
    for line in row["layer"].splitlines():
        lines += textwrap.wrap(line, _LAYER_WIDTH)
    return row | {"layer": "\n".join(lines)}


def print_listings(inspected: Sequence[Inspected], wanted: str) -> None:
    """Print the machine code of some kernels with the main loop marked.

    Args:
        inspected: inspections to choose from.
        wanted: part of a kernel's full name, NETWORK.LAYER.OPERATOR.KERNEL.

    Raises:
        InputError: If no kernel's full name contains `wanted`.
    """
    # a kernel is compiled for each architecture; GPUs of the same architecture share its code
    listings: dict[tuple[str, str], str] = {}
    for subject, inspection in inspected:
        for report, code in zip(inspection.kernels, inspection.codes, strict=True):
            name = f"{report.layer}.{report.operator}.{report.kernel}"
            if subject.network != ONE_LAYER:
                name = f"{subject.network}.{name}"
            listings[name, subject.architecture] = code.machine_code
    chosen = {key: listing for key, listing in listings.items() if wanted in key[0]}
    if not chosen:
        # the message lists all names, so that the user can pick one
        names = dict.fromkeys(name for name, _ in listings)
        raise InputError(f"listing={wanted}: no part of {', '.join(names)}")
    for (name, architecture), listing in chosen.items():
        print(f"{name}, {architecture}: | marks the main loop\n{mark_main_loop(listing)}\n")


def print_published() -> None:
    """Print published times beside the model's predictions, their sources, and the median error."""
    compared = published.comparisons(published.MEASUREMENTS)
    rows = []
    for comparison in compared:
        measurement = comparison.measurement
        row = {
            "layer": f"{comparison.layer}\n{measurement.circumstances}",
            "library": measurement.library,
            "measured": f"{measurement.microseconds:,.1f}",
            "predicted": f"{comparison.predicted:,.1f}",
            "error": f"{comparison.error:+.0%}",
            "bound by": comparison.bound,
        }
        rows.append(row)
    tables.show_rows("predicted against published, µs", rows, dense=True)
    # each source once, in the order of the table
    sources = dict.fromkeys(comparison.measurement.source for comparison in compared)
    for source in sources:
        print(f"source: {source}")
    print(f"median size of the error: {published.median_error(compared):.0%}")
