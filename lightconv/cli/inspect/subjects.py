"""Subjects of an inspection: each network on each GPU or architecture of the settings."""

from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lightconv import nn
from lightconv.analysis import inspection, layers
from lightconv.analysis.gpus import GPUS, UNSUPPORTED
from lightconv.analysis.inspection import Inspection
from lightconv.cli import tables
from lightconv.cli.settings import as_list, tensor_format
from lightconv.errors import InputError
from lightconv.kernels.tiles import ARCHITECTURES

ONE_LAYER = "layer"  # name of the network that consists of the settings' single layer


class Subject(NamedTuple):
    """A network on a GPU, or on an architecture without a data sheet.

    Attributes:
        network: name of a network, or `ONE_LAYER`.
        architecture: architecture to compile for.
        gpu: key of `GPUS` to predict for; None predicts nothing.
    """

    network: str
    architecture: str
    gpu: str | None

    @property
    def title(self) -> str:
        """Words for tables and files: "vgg16 on h100"."""
        return f"{self.network} on {self.gpu or self.architecture}"


class Inspected(NamedTuple):
    """A subject and its inspection."""

    subject: Subject
    inspection: Inspection


def inspect_all(config: DictConfig) -> list[Inspected]:
    """Inspect every network on every GPU of the settings.

    Raises:
        InputError: If a GPU, an architecture, a network or the single layer is invalid.
    """
    return [Inspected(subject, _inspect(subject, config)) for subject in read_subjects(config)]


def read_subjects(config: DictConfig) -> list[Subject]:
    """Return every network on every GPU of the settings, or on every architecture if no GPU is set."""
    targets = read_gpus(config) or read_architectures(config)
    subjects = []
    for architecture, gpu in targets:
        for name in as_list(config.layers):
            network = ONE_LAYER if name is None else name
            subjects.append(Subject(network, architecture, gpu))
    return subjects


def read_gpus(config: DictConfig) -> list[tuple[str, str | None]]:
    """Return the architecture and name of each GPU of the settings."""
    targets: list[tuple[str, str | None]] = []
    for gpu in as_list(config.gpu):
        if gpu is None:
            continue
        if gpu in UNSUPPORTED:
            raise InputError(f"gpu={gpu}: {UNSUPPORTED[gpu]}")
        if gpu not in GPUS:
            raise InputError(f"gpu={gpu}: choose one of {', '.join(GPUS)}")
        targets.append((GPUS[gpu].architecture, gpu))
    return targets


def read_architectures(config: DictConfig) -> list[tuple[str, str | None]]:
    """Return each architecture of the settings, and the first GPU that has it; None if no data sheet is listed."""
    # several GPUs share an architecture: the first one listed stands for it
    first_gpus: dict[str, str] = {}
    for name, gpu in GPUS.items():
        first_gpus.setdefault(gpu.architecture, name)
    targets: list[tuple[str, str | None]] = []
    for architecture in as_list(config.arch):
        if architecture not in ARCHITECTURES:
            raise InputError(f"arch={architecture}: choose one of {', '.join(ARCHITECTURES)}")
        targets.append((architecture, first_gpus.get(architecture)))
    return targets


def _inspect(subject: Subject, config: DictConfig) -> Inspection:
    if subject.network == ONE_LAYER:
        found = layers.find_layers(*build_layer(config))
    else:
        found = layers.network_layers(subject.network, config.batch_size, **tensor_format(config))
    # an architecture without a data sheet is compiled for, and not predicted
    gpu = GPUS[subject.gpu] if subject.gpu else None
    with tables.console.status(f"compiling {subject.title}"):
        return inspection.inspect(found, subject.architecture, gpu)


def build_layer(config: DictConfig) -> tuple[torch.nn.Module, Tensor]:
    """Build the settings' single layer and its images, (n, c, h, w), on the meta device."""
    options: dict[str, Any] = OmegaConf.to_container(config.layer)  # type: ignore[assignment]
    channels = options.pop("channels")
    filters = options.pop("filters")
    size = options.pop("image_size")
    try:
        # only sizes matter: on the meta device nothing is allocated
        with torch.device("meta"):
            module = torch.nn.Sequential(nn.ConvBlock(channels, filters, **options))
            images = torch.empty(config.batch_size, channels, size, size)
        model, images = layers.convert(module, images, **tensor_format(config))
        # called here once, so that impossible sizes are an error of the settings
        model(images)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"layer={dict(config.layer)}: {error}") from error
    return model, images
