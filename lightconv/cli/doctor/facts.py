"""Facts of an installation: versions, settings, GPUs, dispatch and data."""

import os
import platform
import re
import shutil
import sysconfig
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from lightconv.cli.doctor.report import DataSet, Facts, Gpu, Served
from lightconv.cli.installation import installed, output, revision
from lightconv.data.base import SPLIT_NAMES
from lightconv.errors import InputError
from lightconv.kernels.window import Window
from lightconv.operators import autotune_file, backend, conv2d, conv_block, max_pool2d
from lightconv.operators.triton_kernels import launch, tiles
from lightconv.runs.build import instantiate
from lightconv.runs.precision import has_bfloat16

_PACKAGES = ("lightconv", "torch", "torchvision", "lightning", "triton", "torchmetrics", "hydra-core")
_DRIVER = Path("/proc/driver/nvidia/version")  # fallback if nvidia-smi is missing


def versions() -> Facts:
    """Return all versions needed in a bug report."""
    facts: Facts = {package: installed(package) for package in _PACKAGES}
    facts["git revision"] = revision()
    facts["Python"] = platform.python_version()
    facts["platform"] = platform.platform()
    facts["torch's CUDA"] = torch.version.cuda
    facts["torch's ROCm"] = torch.version.hip
    try:
        cudnn = torch.backends.cudnn.version()
    except RuntimeError as error:  # a cuDNN other than the one torch was built with is found first
        facts["torch's cuDNN"] = str(error).splitlines()[0]
    else:
        facts["torch's cuDNN"] = None if cudnn is None else str(cudnn)
    return facts


def settings(backend_name: str) -> Facts:
    """Return the settings that decide which kernel serves a call and in which precision, keyed by name.

    Args:
        backend_name: backend in use.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return {
        "backend": backend_name,
        "LIGHTCONV": os.environ.get("LIGHTCONV"),
        "LIGHTCONV_BACKEND": os.environ.get("LIGHTCONV_BACKEND"),
        "TF32 in convolutions": convolutions.fp32_precision == "tf32",
        "bfloat16 instructions of the CPU": has_bfloat16(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
    }


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver; None if it does not run."""
    printed = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if printed:
        # one line per GPU, all with the same driver
        return printed.splitlines()[0]
    if not _DRIVER.is_file():
        return None
    version = re.search(r"\d+\.[\d.]+", _DRIVER.read_text())
    return version[0] if version else None


def triton_needs() -> Facts:
    """Return the state of Triton, and of the tools used to compile its launchers."""
    # Triton looks for a compiler in this order
    compiler = os.environ.get("CC") or ("gcc" if shutil.which("gcc") else "clang")
    header = Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h")
    return {
        "installed": backend.TRITON,
        "interpreting": backend.TRITON and launch.INTERPRETED,
        "C compiler": shutil.which(compiler),
        "Python.h": header.is_file(),
    }


def describe_gpu(device: str) -> Gpu:
    """Return a GPU's properties, the tiles of its kernels, or the reason why it has none.

    Args:
        device: torch's name of the device, such as "cuda:0".
    """
    properties = torch.cuda.get_device_properties(device)
    tensor = stand_in(device, 1)
    unsupported_reason = backend.tensor_unsupported_reason(tensor)
    architecture, tile_architecture, tuned = None, None, 0
    if backend.TRITON:
        architecture = launch.architecture(tensor)
        tuned = len(autotune_file.load(properties.name))
        if unsupported_reason is None:
            tile_architecture = tiles.nearest_architecture(architecture)
    return Gpu(
        device=device,
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory=round(properties.total_memory / 2**30, 1),
        architecture=architecture,
        tiles=tile_architecture,
        refusal=unsupported_reason,
        tuned=tuned,
    )


def stand_in(device: str, *shape: int) -> Tensor:
    """Return a tensor of any shape in the memory of one element.

    Args:
        device: device of the tensor.
        *shape: sizes of the dimensions.
    """
    return torch.empty((), device=device).expand(shape)


def served_calls(name: str, device: str) -> list[Served]:
    """Ask the operators for the dispatch of LeNet's first layer, as a block and in parts, for a batch of 256.

    Args:
        name: name of the device for the report.
        device: torch's name of the device.
    """
    # dispatch depends on shapes and strides, not on values
    images = stand_in(device, 256, 1, 28, 28)
    weight = stand_in(device, 6, 1, 5, 5)
    maps = stand_in(device, 256, 6, 28, 28)
    padded = Window.of((1, 1), (2, 2), (1, 1))
    halves = Window.of((2, 2), (0, 0), (1, 1))
    dispatches = {
        "convolution": conv2d.dispatch(images, weight, None, padded, 1),
        "block": conv_block.dispatch(images, weight, None, padded, 1, "relu", (2, 2)),
        "max-pooling": max_pool2d.dispatch(maps, (2, 2), halves, False, False),
    }
    # on such a device a call never reaches the dispatch of its operator, even if a kernel could serve it
    wants_kernels = backend.wants_kernels(images.device.type)
    rows = []
    for operator, dispatch in dispatches.items():
        if not dispatch.use_kernel:
            rows.append(Served(name, operator, "torch", dispatch.reason))
        elif not wants_kernels:
            rows.append(Served(name, operator, "torch", "the backend uses no kernels on this device"))
        else:
            rows.append(Served(name, operator, "lightconv", dispatch.reason))
    return rows


def find_data(name: str, config: DictConfig) -> DataSet:
    """Read a data set's files as training and testing would.

    Args:
        name: name of its configuration.
        config: its configuration.
    """
    folder = config.get("root")
    try:
        # reading is the only way to find damaged files
        data = instantiate(config)
        data.setup("fit")
        data.setup("test")
    except InputError as error:
        # the sentences after the first are advice for `lightconv train`
        return DataSet(name, folder, found=False, state=str(error).split(". ")[0])
    sizes = []
    for split in SPLIT_NAMES:
        _, labels = data.split(split)
        sizes.append(f"{len(labels):,} {split}")
    if folder:
        sizes.append(f"in {folder}")
    return DataSet(name, folder, found=True, state=", ".join(sizes))
