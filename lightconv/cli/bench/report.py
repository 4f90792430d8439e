"""What every measurement shares: a clock, and a table that says what it depends on."""

import importlib
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lightconv.cli import tables


class Report(NamedTuple):
    """What a bench has found.

    Attributes:
        tables: by their titles, which say what was compared, on what, and in which unit; rows are dictionaries.
        note: what is counted in and what is left out.
        figure: the same as a picture.
    """

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    note: str = ""
    figure: Figure | None = None

    def show(self) -> None:
        """Print it, without the picture."""
        for title, rows in self.tables.items():
            tables.show_rows(title, rows)
        if self.note:
            tables.console.print(self.note, highlight=False)

    def write(self, path: Path) -> None:
        """Write it as Markdown, and the picture, if there is one, as a PNG beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [f"{title}\n\n{tables.markdown(rows)}" for title, rows in self.tables.items()]
        if self.note:
            parts.append(f"{self.note}\n")
        if self.figure is not None:
            picture = path.with_suffix(".png")
            self.figure.savefig(picture, dpi=110)
            parts.append(f"![the same as a picture]({picture.name})\n")
        path.write_text("\n".join(parts))


def clock() -> float:
    """Seconds, read when the accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def circumstances(config: DictConfig, device: torch.device, *packages: str) -> str:
    """What a time depends on: device, versions, dtype, memory format, and how many times it was taken."""
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in packages]
    repeated = f"median of {_counted(config.rounds, 'round')}"
    return ", ".join([_device_name(device), *versions, config.dtype, memory_format(config), repeated])


def memory_format(config: DictConfig) -> str:
    """The name of the memory format that was asked for."""
    return "channels_last" if config.channels_last else "contiguous"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {_counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")  # Linux; platform.processor() is often empty there
    lines = described.read_text().splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
