"""lightconv doctor: what is installed, what will run where, and what stands in the way."""

import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from lightconv.cli import tables
from lightconv.cli.installation import Extra, extras, installed, is_met, output, requirements, revision
from lightconv.data.base import SPLIT_NAMES
from lightconv.errors import InputError
from lightconv.kernels.window import Window
from lightconv.operators import autotune_file, backend, conv2d, conv_block, max_pool2d
from lightconv.runs.build import instantiate

if backend.TRITON:
    from lightconv.kernels import launch, tiles

Facts = dict[str, str | bool | None]

_PACKAGES = ("lightconv", "torch", "torchvision", "lightning", "triton", "torchmetrics", "hydra-core")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use.

    Attributes:
        device: torch's name of it, such as "cuda:0".
        name: its maker's.
        capability: of its instructions, such as "9.0".
        memory: in GiB.
        architecture: as its compiler calls it; None where Triton is not installed.
        tiles: the architecture whose tile tables serve it; None where no kernel does.
        refusal: why it has no kernels; None if it has.
        tuned: choices that ``lightconv tune`` measured on such a GPU.
    """

    device: str
    name: str
    capability: str
    memory: float
    architecture: str | None
    tiles: str | None
    refusal: str | None
    tuned: int = 0


@dataclass(frozen=True)
class Served:
    """Who serves a call on a device, and why."""

    device: str
    operator: str
    by: str
    reason: str


@dataclass(frozen=True)
class DataSet:
    """A set of conf/data, the folder that it was looked for in (None if it needs none), and what was found."""

    name: str
    folder: str | None
    found: bool
    state: str


@dataclass(frozen=True)
class Problem:
    """What is wrong, what to do about it, and whether lightconv cannot work until it is done."""

    what: str
    advice: str
    fatal: bool = False


@dataclass(frozen=True)
class Report:
    """Everything that ``lightconv doctor`` prints."""

    installed: Facts
    driver: str | None
    gpus: list[Gpu]
    triton: Facts
    settings: Facts
    served: list[Served]
    data: list[DataSet]
    extras: list[Extra]
    problems: list[Problem]


def doctor(config: DictConfig) -> None:
    """Print the report; exit with status 1 if lightconv cannot work.

    Raises:
        InputError: for an unknown backend.
    """
    with backend.use_backend(config.backend):
        report = examine(config)
    if config.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        show(report)
    if any(problem.fatal for problem in report.problems):
        sys.exit(1)


def examine(config: DictConfig) -> Report:
    """Gather everything."""
    driver, triton = nvidia_driver(), triton_needs()
    gpus = [gpu(f"cuda:{i}") for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices = {gpu.name: gpu.device for gpu in gpus} or {"the CPU": "cpu"}  # one of each kind
    return Report(
        installed=versions(),
        driver=driver,
        gpus=gpus,
        triton=triton,
        settings=settings(config.backend),
        served=[row for name, device in devices.items() for row in served(name, device)],
        data=[data_set(name, part) for name, part in config.data.items()],
        extras=extras(),
        problems=[*unmet_requirements(), *unplugged(), *hindrances(driver, gpus, triton)],
    )


# -------------------------------------------------------------------------------------------------- the facts


def versions() -> Facts:
    """The versions that a bug report has to name."""
    return {
        **{package: installed(package) for package in _PACKAGES},
        "git revision": revision(),
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "torch's CUDA": torch.version.cuda,
        "torch's ROCm": torch.version.hip,
        "torch's cuDNN": _cudnn(),
    }


def _cudnn() -> str | None:
    try:
        number = torch.backends.cudnn.version()
    except RuntimeError as error:  # another cuDNN than torch was built with gets in the way
        return str(error).splitlines()[0]
    return None if number is None else str(number)


def settings(chosen: str) -> Facts:
    """What decides, besides the hardware, who serves a call and how exactly it is computed."""
    return {
        "backend": chosen,
        "LIGHTCONV": os.environ.get("LIGHTCONV"),
        "LIGHTCONV_BACKEND": os.environ.get("LIGHTCONV_BACKEND"),
        "TF32 in convolutions": torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
    }


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None where it does not run."""
    printed = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not printed and _DRIVER.is_file():
        printed = "".join(re.findall(r"\d+\.[\d.]+", _DRIVER.read_text())[:1])
    return printed.splitlines()[0] if printed else None


def triton_needs() -> Facts:
    """Look for Triton, and for what it needs to compile the code that launches a kernel."""
    compiler = os.environ.get("CC") or ("gcc" if shutil.which("gcc") else "clang")  # as Triton looks for one
    return {
        "installed": backend.TRITON,
        "interpreting": backend.TRITON and launch.INTERPRETED,
        "C compiler": shutil.which(compiler),
        "Python.h": Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h").is_file(),
    }


def gpu(device: str) -> Gpu:
    """Ask torch about a GPU, and lightconv whether and how its kernels serve it."""
    properties, tensor = torch.cuda.get_device_properties(device), stand_in(device, 1)
    refusal = backend.tensor_unsupported_reason(tensor)
    architecture = launch.architecture(tensor) if backend.TRITON else None
    return Gpu(
        device=device,
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory=round(properties.total_memory / 2**30, 1),
        architecture=architecture,
        tiles=tiles.nearest_architecture(architecture) if architecture and refusal is None else None,
        refusal=refusal,
        tuned=len(autotune_file.load(properties.name)) if backend.TRITON else 0,
    )


def stand_in(device: str, *shape: int) -> Tensor:
    """A tensor of any shape in the memory of one element."""
    return torch.empty((), device=device).expand(shape)


def served(name: str, device: str) -> list[Served]:
    """Ask the operators who would serve LeNet's first layer, as a block or in parts, for a batch of 256."""
    images, filters, maps = (stand_in(device, *s) for s in [(256, 1, 28, 28), (6, 1, 5, 5), (256, 6, 28, 28)])
    window, halves = Window.of((1, 1), (2, 2), (1, 1)), Window.of((2, 2), (0, 0), (1, 1))
    choices = {
        "convolution": conv2d.dispatch(images, filters, None, window, 1),
        "block": conv_block.dispatch(images, filters, None, window, 1, "relu", (2, 2)),
        "max-pooling": max_pool2d.dispatch(maps, (2, 2), halves, False, False),
    }
    if not backend.wants_kernels(images.device.type):  # then kernels are not asked, even if they could
        unasked = backend.Dispatch(False, "the backend uses no kernels on this device")
        choices = {operator: unasked if choice.use_kernel else choice for operator, choice in choices.items()}
    return [
        Served(name, operator, "lightconv" if c.use_kernel else "torch", c.reason) for operator, c in choices.items()
    ]


def data_set(name: str, config: DictConfig) -> DataSet:
    """Let a set read its files, as training and testing would."""
    folder = config.get("root")
    try:
        data = instantiate(config)
        data.setup("fit")
        data.setup("test")
    except InputError as error:
        return DataSet(name, folder, False, str(error).split(". ")[0])  # the rest is advice for `lightconv train`
    sizes = ", ".join(f"{len(data.split(part)[1]):,} {part}" for part in SPLIT_NAMES)
    return DataSet(name, folder, True, f"{sizes}, in {folder}" if folder else sizes)


# -------------------------------------------------------------------------------------------------- what is wrong


def unmet_requirements() -> list[Problem]:
    """Requirements of lightconv, and of torchvision, each release of which fits one torch alone."""
    problems = []
    for package in filter(installed, ("lightconv", "torchvision")):
        for requirement in (r for r in requirements(package) if not is_met(r)):
            wanted, found = f"{requirement.name}{requirement.specifier}", installed(requirement.name)
            state = f"{found} is installed" if found else "which is not installed"
            fatal = requirement.name != "triton" or found is not None  # torch serves what Triton is not there for
            problems.append(Problem(f"{package} needs {wanted}, {state}", f"pip install '{wanted}'", fatal))
    return problems


def unplugged() -> list[Problem]:
    """Whether LIGHTCONV, where it is set, reaches Lightning, which asks what is installed for callbacks."""
    asked = os.environ.get("LIGHTCONV", "") not in {"", "0"}
    if not asked or entry_points(group="lightning.pytorch.callbacks_factory", name="lightconv"):
        return []
    what = "LIGHTCONV is set, but Lightning does not learn of it: lightconv was installed before it could"
    return [Problem(what, "install it again: pip install -e . in a checkout")]


def hindrances(driver: str | None, gpus: list[Gpu], triton: Facts) -> list[Problem]:
    """What keeps a GPU that is there from running kernels, or from running them well."""
    cuda, unseen = torch.version.cuda, driver is not None and not gpus
    launches = any(gpu.refusal is None for gpu in gpus) and not triton["interpreting"]
    known = {
        f"NVIDIA's driver {driver} is here, but torch was built without CUDA": (
            unseen and cuda is None,
            "install a build with CUDA: https://pytorch.org/get-started/locally",
        ),
        f"NVIDIA's driver {driver} is here, but torch sees no GPU": (
            unseen and cuda is not None,
            f"check CUDA_VISIBLE_DEVICES, and that the driver is new enough for CUDA {cuda}",
        ),
        "Triton interprets kernels, slowly, although a GPU is here": (
            gpus and triton["interpreting"],
            "unset TRITON_INTERPRET",
        ),
        "Triton finds no C compiler, without which it launches no kernel": (
            launches and not triton["C compiler"],
            "install gcc, or name another compiler in CC",
        ),
        "Python.h is missing, without which Triton launches no kernel": (
            launches and not triton["Python.h"],
            "install Python's headers: python3-dev on Debian, python3-devel on Fedora",
        ),
    }
    refused = {
        f"{gpu.name}: {gpu.refusal}": (triton["installed"] and gpu.refusal, "nothing breaks: torch serves it all")
        for gpu in gpus
    }
    return [Problem(what, advice) for what, (applies, advice) in {**known, **refused}.items() if applies]


# -------------------------------------------------------------------------------------------------- in words


def show(report: Report) -> None:
    """Print the report for people."""
    tables.show_facts("Installed", _rows(report.installed))
    tables.show_facts("GPUs", _gpu_rows(report))
    tables.show_facts("Triton", _rows(report.triton))
    tables.show_facts("Settings", _rows(report.settings))
    for device in dict.fromkeys(row.device for row in report.served):
        rows = [(row.operator, row.by, row.reason) for row in report.served if row.device == device]
        tables.show_facts(f"Who serves LeNet's first layer on {device} (256 images, float32)", rows)
    tables.show_facts("Data", [(part.name, part.state) for part in report.data])
    missing = {e.name: f"no {', '.join(e.unmet)}: {e.command}" for e in report.extras if e.unmet}
    tables.show_facts("Extras", [(e.name, missing.get(e.name, "installed")) for e in report.extras])
    problems = [row for p in report.problems for row in ((p.what,), (f"-> {p.advice}",))]
    tables.show_facts("Problems", problems or [("No problems found",)])


def _rows(facts: Facts) -> list[tuple[str, str]]:
    words = {True: "yes", False: "no", None: "none"}
    return [(name, value if isinstance(value, str) else words[value]) for name, value in facts.items()]


def _gpu_rows(report: Report) -> list[tuple[str, str]]:
    rows = [("NVIDIA driver", report.driver)] if report.driver else []
    for gpu in report.gpus:
        rows.append((gpu.device, f"{gpu.name}, capability {gpu.capability}, {gpu.memory:.0f} GiB"))
        rows.append((gpu.architecture or "", gpu.refusal or f"has kernels, with the tiles of {gpu.tiles}"))
        if gpu.refusal is None:
            rows.append(("", f"{gpu.tuned} choices measured by lightconv tune; the rules make all others"))
    return rows if report.gpus else [*rows, ("none", "PyTorch's own operators serve everything")]
