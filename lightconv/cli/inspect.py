"""lightconv inspect: compile kernels for a GPU that need not be here, judge them, and say what a change did to them."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightconv import nn
from lightconv.analysis import layers
from lightconv.analysis.comparison import changes
from lightconv.analysis.gpus import GPUS, UNSUPPORTED
from lightconv.analysis.machine_code import mark_main_loop
from lightconv.cli import tables
from lightconv.cli.settings import DTYPES, as_list, check_choice, check_integer, tensor_format
from lightconv.errors import InputError
from lightconv.operators.backend import TRITON
from lightconv.visualize import Point, roofline

if TRITON:
    import triton

    from lightconv.analysis import inspection, published
    from lightconv.kernels.tiles import ARCHITECTURES

_LEGEND = """\
x4: four layers run it; spilt: bytes of a thread; shared: KiB of a block; blocks, warps: resident at
once; s: seconds of compiling, unless saved by Triton's cache; mma, others: matrix instructions of the
main loop, and others for each; outside: instructions outside of it; code: KiB; loads, stores: bits that
a thread moves at once
"""
_KERNEL_CELLS = (
    ("kernel", "tile"), ("regs", "spilt"), ("shared", "blocks"), ("warps", "s"), ("mma", "others"), ("outside", "code"),
    ("loads", "stores"),
)  # fmt: skip
_LAYER_CELLS = (("layer",), ("times", "gain"), ("forward", "backward"), ("torch", "compiled"), ("slowest by",))
_LAYER_WIDTH = 26  # characters
_PREDICTED = """\
forward, backward: lightconv's kernels, each by its largest bound; torch, compiled: torch's forward and
backward, every operator at the data sheet's rate, which cuDNN does not reach; gain: torch / lightconv
"""


class Subject(NamedTuple):
    """What is inspected at once: a network, and the GPU or only the architecture that it is compiled for."""

    network: str
    architecture: str
    gpu: str | None

    @property
    def title(self) -> str:
        """For tables and files."""
        return f"{self.network} on {self.gpu or self.architecture}"


Found = tuple[Subject, "inspection.Inspection"]


def inspect(config: DictConfig) -> None:
    """Print the kernels of a training step, and what they are predicted to take; or what changed since a revision.

    Raises:
        InputError: for unknown settings, or where Triton is missing.
    """
    if not TRITON:
        raise InputError("inspect compiles kernels, and Triton is not installed: pip install triton (Linux)")
    check_choice(config, "dtype", DTYPES)
    check_integer(config, "batch_size")
    if config.published:
        _show_published()
        return
    if config.diff is not None:
        _show_changes(*_both_sides(config))
        return
    found = [(subject, _inspected(subject, config)) for subject in _subjects(config)]
    if config.listing is not None:
        _print_listings(found, config.listing)
        return
    for subject, result in found:
        _show(subject, result)
    if config.output is not None:
        _write(found, config)


def _subjects(config: DictConfig) -> list[Subject]:
    targets: list[tuple[str, str | None]] = []
    for gpu in as_list(config.gpu):
        if gpu in UNSUPPORTED:
            raise InputError(f"gpu={gpu}: {UNSUPPORTED[gpu]}")
        if gpu is not None and gpu not in GPUS:
            raise InputError(f"gpu={gpu}: choose one of {', '.join(GPUS)}")
        targets += [(GPUS[gpu].architecture, gpu)] if gpu else []
    for architecture in as_list(config.arch) if not targets else []:
        if architecture not in ARCHITECTURES:
            raise InputError(f"arch={architecture}: choose one of {', '.join(ARCHITECTURES)}")
        first = next((name for name, gpu in GPUS.items() if gpu.architecture == architecture), None)
        targets.append((architecture, first))
    networks = ["layer" if name is None else name for name in as_list(config.layers)]
    return [Subject(network, *target) for target in targets for network in networks]


def _inspected(subject: Subject, config: DictConfig) -> "inspection.Inspection":
    if subject.network == "layer":
        found = layers.find_layers(*_one_layer(config))
    else:
        found = layers.network_layers(subject.network, config.batch_size, **tensor_format(config))
    with tables.console.status(f"compiling {subject.title}"):
        return inspection.inspect(found, subject.architecture, GPUS[subject.gpu] if subject.gpu else None)


def _one_layer(config: DictConfig) -> Any:
    options: dict[str, Any] = OmegaConf.to_container(config.layer)  # type: ignore[assignment]
    channels, filters, size = (options.pop(name) for name in ("channels", "filters", "image_size"))
    try:
        with torch.device("meta"):
            module = torch.nn.Sequential(nn.ConvBlock(channels, filters, **options))
            images = torch.empty(config.batch_size, channels, size, size)
        given = layers.convert(module, images, **tensor_format(config))
        module(given[1])
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"layer={dict(config.layer)}: {error}") from error
    return given


# ------------------------------------------------------------------------------------------------------ what is shown


def _show(subject: Subject, result: "inspection.Inspection") -> None:
    kernels = [tables.stack_columns(row, _KERNEL_CELLS) for row in _kernel_rows(result)]
    tables.show_rows(f"kernels of {subject.title}", kernels, dense=True)
    print(_LEGEND)
    if result.layers:
        predicted = [tables.stack_columns(_folded(row), _LAYER_CELLS) for row in _layer_rows(result)]
        tables.show_rows(f"{subject.title}, predicted, µs", predicted, dense=True)
        print(_PREDICTED)


def _kernel_rows(result: "inspection.Inspection") -> list[dict[str, Any]]:
    """A row for each different kernel: the layers that share one are counted."""
    users: dict[tuple[Any, ...], list[Any]] = {}
    for report in result.kernels:
        same = report._replace(layer="", seconds=None, bound="", compile_seconds=None)
        users.setdefault((*same,), []).append(report)
    return [_kernel_row(reports[0], len(reports)) for reports in users.values()]


def _kernel_row(report: Any, layers: int) -> dict[str, Any]:
    dragged, seconds = report.instructions_per_matrix_instruction, report.compile_seconds
    return {
        "kernel": f"{report.kernel} x{layers}" if layers > 1 else report.kernel,
        "tile": report.tile,
        "regs": report.registers,
        "spilt": report.spilled,
        "shared": f"{report.shared / 1024:.0f}",
        "blocks": report.blocks,
        "warps": f"{report.occupancy:.0%}",
        "s": "" if seconds is None else f"{seconds:.1f}",
        "mma": report.matrix or "",
        "others": "" if dragged is None else f"{dragged:.1f}",
        "outside": str(report.outside),
        "code": f"{report.code_bytes / 1024:.0f}",
        "loads": report.loads.replace(" ", "/"),
        "stores": report.stores.replace(" ", "/"),
    }


def _layer_rows(result: "inspection.Inspection") -> list[dict[str, Any]]:
    slowest = {report.layer: report for report in sorted(result.kernels, key=lambda r: r.seconds or 0)}
    rows = [_layer_row(layer, slowest.get(layer.layer)) for layer in result.layers]
    columns = ("forward", "backward", "eager", "inductor")
    total = {name: sum(layer.times * getattr(layer, name) for layer in result.layers) for name in columns}
    return [*rows, _figures("all", sum(layer.times for layer in result.layers), total, "")]


def _layer_row(layer: Any, slowest: Any) -> dict[str, Any]:
    bound = f"{slowest.bound}\n{slowest.kernel}" if slowest is not None else "torch's\nmatrix product"
    return _figures(f"{layer.layer}\n{layer.sizes}", layer.times, layer._asdict(), bound)


def _figures(name: str, times: int, seconds: Any, bound: str) -> dict[str, Any]:
    ours = seconds["forward"] + seconds["backward"]
    micro = {column: f"{value * 1e6:,.1f}" for column, value in seconds.items() if isinstance(value, float)}
    return {
        "layer": name,
        "times": times,
        "forward": micro["forward"],
        "backward": micro["backward"],
        "torch": micro["eager"],
        "compiled": micro["inductor"],
        "gain": f"{seconds['eager'] / ours:.2f}",
        "slowest by": bound,
    }


def _folded(row: dict[str, Any]) -> dict[str, Any]:
    lines = (part for line in row["layer"].splitlines() for part in textwrap.wrap(line, _LAYER_WIDTH))
    return row | {"layer": "\n".join(lines)}


def _print_listings(found: Sequence[Found], wanted: str) -> None:
    listings = {
        f"{report.layer}.{report.operator}.{report.kernel}": (subject.architecture, code.machine_code)
        for subject, result in found
        for report, code in zip(result.kernels, result.codes, strict=True)
    }
    chosen = [name for name in listings if wanted in name]
    if not chosen:
        raise InputError(f"listing={wanted}: no part of {', '.join(listings)}")
    for name in chosen:
        architecture, listing = listings[name]
        print(f"{name}, {architecture}: | marks the main loop\n{mark_main_loop(listing)}\n")


# ---------------------------------------------------------------------------------------------------- what is written


def _write(found: Sequence[Found], config: DictConfig) -> None:
    base = Path(config.output)
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_name(base.name + ".json").write_text(json.dumps(_as_json(found, config), indent=1) + "\n")
    base.with_name(base.name + ".md").write_text(_as_markdown(found, config))
    for subject, result in found:
        if result.layers:
            picture = base.with_name(f"{base.name}_{subject.gpu}_{subject.network}.png")
            _picture(subject, result, config).savefig(picture, dpi=100)


def _as_json(found: Sequence[Found], config: DictConfig) -> dict[str, Any]:
    settings = {name: config[name] for name in ("batch_size", "dtype", "channels_last")}
    kernels = [{**s._asdict(), **k._asdict()} for s, result in found for k in result.kernels]
    layers = [{**s._asdict(), **la._asdict()} for s, result in found for la in result.layers]
    return {**settings, **_versions(), "kernels": kernels, "layers": layers}


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "triton": triton.__version__}


def _as_markdown(found: Sequence[Found], config: DictConfig) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    layout = "channels_last" if config.channels_last else "contiguous"
    step = f"a training step, {config.dtype}, {layout}, batch {config.batch_size}, {versions}"
    head = (
        f"# Predicted, not measured\n\nMicroseconds of {step}. {' '.join(_PREDICTED.split())}. "
        "`lightconv/analysis/prediction.py` says how, `lightconv inspect published=true` how far it is off. Here "
        "lightconv's kernels run everywhere, as by backend `triton`; `auto` leaves to torch what its rules say.\n"
    )
    parts = []
    for subject, result in found:
        rows = [{key: str(value).replace("\n", ": ") for key, value in row.items()} for row in _layer_rows(result)]
        parts.append(f"\n## {subject.title}\n\n{tables.markdown(rows)}")
    return head + "".join(parts)


def _picture(subject: Subject, result: "inspection.Inspection", config: DictConfig) -> Any:
    gpu = GPUS[subject.gpu or ""]
    points = [Point(la.layer, la.operations / la.bytes, la.operations / la.forward) for la in result.layers]
    kind = "half" if config.dtype != "float32" else "tf32"
    return roofline(
        gpu.peak(kind),
        gpu.bandwidth,
        points,
        f"{subject.title}: forward passes in {config.dtype} under its roof, predicted",
    )


# ----------------------------------------------------------------------------------------------------- what changed


def _both_sides(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(config.diff, ListConfig):
        if len(config.diff) != 2:
            raise InputError(f"diff={list(config.diff)}: give two files, [before.json,after.json], or a git revision")
        before, after = (_read(Path(name)) for name in config.diff)
        return before, after
    before = _at_revision(str(config.diff), config)
    return before, _as_json([(s, _inspected(s, config)) for s in _subjects(config)], config)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content["kernels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"diff: {path} is not what output=... writes: {error!r}") from error
    return content


def _at_revision(revision: str, config: DictConfig) -> dict[str, Any]:
    """The same inspection by the code of another revision, in a checkout of its own that is removed again."""
    source = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        _git(source, "worktree", "add", "--detach", "--force", str(checkout), revision)
        try:
            return _inspected_by(checkout, config)
        finally:
            _git(source, "worktree", "remove", "--force", str(checkout))


def _git(source: Path, *arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"diff: git {arguments[0]} failed: {done.stderr.strip()}")


def _inspected_by(checkout: Path, config: DictConfig) -> dict[str, Any]:
    settings: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    settings |= {"diff": None, "output": str(checkout / "inspected"), "listing": None}
    (checkout / "settings.json").write_text(json.dumps(settings))
    call = "import json, sys; from omegaconf import OmegaConf; from lightconv.cli.inspect import inspect; "
    call += "inspect(OmegaConf.create(json.load(open(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", call, str(checkout / "settings.json")],
        env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False, cwd=checkout,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise InputError(f"diff: that revision cannot inspect itself: {' '.join(reason)}")
    return _read(checkout / "inspected.json")


def _show_published() -> None:
    compared = published.comparisons()
    rows = [
        {
            "layer": f"{c.layer}\n{c.measurement.circumstances}",
            "library": c.measurement.library,
            "measured": f"{c.measurement.microseconds:,.1f}",
            "predicted": f"{c.predicted:,.1f}",
            "error": f"{c.error:+.0%}",
            "bound by": c.bound,
        }
        for c in compared
    ]
    tables.show_rows("predicted against published, µs", rows, dense=True)
    for source in dict.fromkeys(c.measurement.source for c in compared):
        print(f"source: {source}")
    print(f"the error's size is {published.median_error(compared):.0%} in the median")


def _readable(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value  # seconds of a kernel are millionths


def _show_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = changes(before["kernels"], after["kernels"])
    if not found:
        print("every kernel is what it was")
        return
    tables.show_rows("what changed", [{name: _readable(value) for name, value in c._asdict().items()} for c in found])
    if any(change.verdict == "worse" for change in found):
        sys.exit(1)
